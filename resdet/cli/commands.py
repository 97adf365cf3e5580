"""``resdet COMMAND ...``, also as ``python -m resdet.cli COMMAND ...``: the tools by name, wherever it is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from resdet.cli.converting import convert, publish
from resdet.cli.demos import demo, demo_localization
from resdet.cli.downloading import download
from resdet.cli.exporting import export
from resdet.cli.inspecting import browse, check_data
from resdet.cli.looking import analyze, ladder, show_steps
from resdet.cli.measuring import benchmark
from resdet.cli.reporting import report, runs
from resdet.cli.running import run
from resdet.cli.serving import serve
from resdet.cli.testing import evaluate, infer
from resdet.cli.training import train_any
from resdet.version import __version__

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "download": (download, "published data sets into data/"),
    "train": (train_any, "train what a config says"),
    "eval": (evaluate, "metrics of a checkpoint or of a results file"),
    "infer": (infer, "detect in images, folders, videos and streams"),
    "check": (check_data, "all that is wrong with a data set"),
    "browse": (browse, "samples as the net will see them"),
    "report": (report, "what a detector gets wrong, as one HTML file"),
    "runs": (runs, "a table of all runs, and what two of them differ in"),
    "publish": (publish, "a checkpoint as one file for others"),
    "export": (export, "a detector as ONNX or torch.export, also in 8-bit integers"),
    "serve": (serve, "a web page and HTTP for detectors"),
    "convert": (convert, "checkpoints of other programs"),
    "ladder": (ladder, "the paper's Table 9 for any checkpoints"),
    "show-steps": (show_steps, "pictures of refinement, voting and the rest"),
    "analyze": (analyze, "curves, responses, gradients and lesions of classifiers"),
    "benchmark": (benchmark, "speed and memory beside other libraries"),
    "demo": (demo, "pre-train, train and draw a detector on data that are drawn"),
    "demo-loc": (demo_localization, "the same of localizers"),
}


def commands(arguments: Sequence[str] | None = None) -> None:
    """Call a command; without one, look at the environment and list them."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        sys.argv[0] = f"resdet {words[0]}"  # of usage lines
        COMMANDS[words[0]][0](words[1:])
        return
    rows = [f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()]
    usage = "\n".join(["usage: resdet COMMAND [-h] ...", "", *rows])
    if words and words[0] == "--version":
        print(__version__)
    elif words and words[0] not in ("-h", "--help"):
        from resdet.errors import nearest

        sys.exit(f"error: command\n  found:  {words[0]!r}\n  needed: {nearest(words[0], COMMANDS)}")
    else:
        (print if words else lambda text: run(lambda: print(text), choose_threads=False))(usage)
