"""The command line of the tools: arguments, and a user's mistake told in one message.

Nothing heavy is imported before the arguments are read, so that ``-h`` and a typo are answered at once.
"""

from resdet.cli.converting import convert, publish
from resdet.cli.downloading import download
from resdet.cli.exporting import export
from resdet.cli.inspecting import browse, check_data
from resdet.cli.looking import analyze, ladder, show_steps
from resdet.cli.measuring import benchmark
from resdet.cli.reporting import report, runs
from resdet.cli.running import run
from resdet.cli.serving import serve
from resdet.cli.testing import evaluate, infer
from resdet.cli.training import train

__all__ = [
    "analyze",
    "benchmark",
    "browse",
    "check_data",
    "convert",
    "download",
    "evaluate",
    "export",
    "infer",
    "ladder",
    "publish",
    "report",
    "run",
    "runs",
    "serve",
    "show_steps",
    "train",
]
