"""``--data FOLDER`` in place of a config: which config stands behind it, and what it reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resdet.engine.config import ExperimentConfig

OWN = "frcnn_r18_fpn_own"
"""The config of one's own data."""


def add_data(parser: argparse.ArgumentParser) -> None:
    """The flag."""
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="a data set in COCO, VOC or YOLO form, recognised; takes the place of the data of the config",
    )


def config_of(
    config: str | None, data: str | None, options: Sequence[str] = (), *, default: str = OWN
) -> ExperimentConfig:
    """The config with the data of a folder.

    Args:
        config: a file of configs/; None: ``default``, where there are data.
        data: of ``--data``.
        options: overrides.
        default: config of data alone.
    """
    from dataclasses import replace

    from resdet.engine.config import load_config

    overrides: dict[str, dict[str, Any]] = {}
    if data is not None:
        reader = "resdet.datasets.by_folder.read_folder"
        for section, split in (("train_data", "train"), ("test_data", "val")):
            overrides[section] = {"_delete_": True, "type": reader, "folder": data, "split": split}
    read = load_config(config or default, options, overrides=overrides)
    return read if data is None else replace(read, said=(f"--data {data}", *read.said))


def work_dir_of(args: argparse.Namespace) -> Path:
    """``--work-dir``, or a folder named after the config and the data."""
    names = [Path(args.config or OWN).stem, *([Path(args.data).stem] if args.data else [])]
    return Path(args.work_dir or Path("work_dirs") / "_".join(names))
