"""``tools/serve.py``."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence

from resdet.cli.arguments import MANY, at_least
from resdet.cli.running import run


def serve(arguments: Sequence[str] | None = None) -> None:
    """``tools/serve.py``."""
    parser = argparse.ArgumentParser(
        description="Trained detectors as a web page, and for programs as POST /detect, on this machine (extra web)."
    )
    add = parser.add_argument
    explained = (
        "best.pth or last.pth of a run, a published file, or NAME.onnx of tools/export.py; several stand side by side"
    )
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help=explained)
    explained = "address to listen at (default: 127.0.0.1, which this machine alone reaches; 0.0.0.0: all)"
    add("--host", default="127.0.0.1", metavar="ADDRESS", help=explained)
    add("--port", type=at_least(0), default=7860, metavar="N", help="default: 7860; 0: any that is free")
    add("--max-upload", type=at_least(1), default=20, metavar="MB", help="largest file that is taken (default: 20)")
    add("--device", help="cpu or cuda (default: cuda where there is one)")
    add("--cfg-options", **MANY, default=[], metavar="KEY=VALUE", help="override model... and test...")
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.errors import InputError

        try:
            from resdet.deploy import web
        except ModuleNotFoundError as error:
            needed = 'pip install "resdet[web]"'
            raise InputError("the web page", found=f"no {error.name}", needed=needed) from error
        from resdet.deploy.serving import Service

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads are removed at the end, whoever ends it
        service = Service(args.checkpoints, device=args.device, options=args.cfg_options)
        web.serve(service, host=args.host, port=args.port, max_upload=args.max_upload)

    run(main)
