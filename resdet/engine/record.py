"""run.json: what a run is and how far it came, as text beside its checkpoints. ``tools/runs.py`` reads it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar

from mmengine.hooks import Hook
from mmengine.runner import Runner
from pydantic import ConfigDict, Field

from resdet.engine import distributed
from resdet.engine.config import CALLS, SETTINGS, ExperimentConfig
from resdet.errors import InputError
from resdet.evaluation.report import provenance, write_json
from resdet.settings import CountOrNone, NotNegative, Settings, plain

RECORD = "run.json"
LARGEST = 1 << 22
"""Bytes of a record; with the text of its config it has some thousands."""


class Record(Settings):
    """What a run writes of itself at its start, with each checkpoint, and at its end."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]
    section: ClassVar[str] = "run"
    task: str
    config: dict[str, str | None]
    """Its ``path``, and its ``text`` with bases and overrides resolved."""
    overrides: tuple[str, ...]
    """What the command line said beyond the config."""
    settings: dict[str, Any]
    """Everything that a config can say, defaults filled in, by ``section.name``."""
    score: str
    """The figure that tells the best checkpoint; more is better."""
    seed: CountOrNone | None
    commit: str | None
    """Of the program, else of the config (:func:`resdet.evaluation.report.commit_of`)."""
    versions: dict[str, str]
    machine: dict[str, str | int | None]
    processes: CountOrNone
    steps: CountOrNone
    """Of the whole run."""
    began: str
    """When it was started first, ISO 8601 in UTC."""
    seconds: NotNegative = 0.0
    """Of training and validation up to ``step``; what a killed run had done since its last checkpoint is not in it."""
    step: CountOrNone = 0
    """Of its last checkpoint."""
    best: Annotated[float, Field(allow_inf_nan=False)] | None = None
    best_step: CountOrNone | None = None
    figures: dict[str, float | None] = Field(default_factory=dict)
    """Of the last validation."""
    finished: bool = False


def read_record(work_dir: str | Path) -> Record:
    """The record of a run.

    Raises:
        InputError: none, or a file that is not one.
    """
    path = Path(work_dir) / RECORD
    needed = "what a training writes"
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(path, found=error.strerror or str(error), needed=needed) from error
    if len(content) > LARGEST:
        raise InputError(path, found=f"more than {LARGEST} bytes", needed=needed)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(path, found="no JSON", needed=needed) from error
    return Record.read(values, where=str(path), section="record")


def described(config: ExperimentConfig) -> dict[str, Any]:
    """Everything that a config says or leaves at its default, in plain values by ``section.name``."""
    sections = {name: plain(getattr(config, name)) for name in (*SETTINGS, "test")}
    sections["optimizer"] |= {name: plain(value) for name, value in (config.optimizer.model_extra or {}).items()}
    for name in CALLS:
        if (call := getattr(config, name)) is not None:
            sections[name] = {"type": call.describe()["type"], **plain(call.settings)}
    said = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    said |= {"task": config.task.name, "metric": config.metric, "load_from": config.load_from}
    hooks = [{name: str(value) for name, value in hook.items()} for hook in config.custom_hooks]
    return said | {"augmentation": plain(config.augmentation), "custom_hooks": hooks}


class Recorder(Hook):
    """Writes the record of a run.

    Args:
        config: of the run.
        score: the figure that tells the best checkpoint.
        overrides: what the command line said beyond the config.
    """

    priority = "VERY_LOW"

    def __init__(self, config: ExperimentConfig, *, score: str, overrides: tuple[str, ...]) -> None:
        self.config, self.score, self.overrides = config, score, overrides
        self._record: dict[str, Any] = {}
        self._since, self._before = time.perf_counter(), 0.0

    def before_train(self, runner: Runner) -> None:
        """Write what is known now; of a run that goes on in its own work dir, what it had done before."""
        config = self.config
        origin = provenance(config.filename, None, seed=runner.seed, config_text=config.text)
        del origin["checkpoint"]
        began = origin.pop("date")
        self._record = {
            "task": config.task.name,
            "overrides": list(self.overrides),
            "settings": described(config) | {"optimizer.lr": runner.extra_meta["settings"]["optimizer.lr"]},
            "score": self.score,
            "processes": distributed.world_size(),
            "steps": runner.max_iters,
            **origin,
            "began": began,
            "step": runner.iter,
        }
        if runner.iter and (Path(runner.work_dir) / RECORD).is_file():
            self._go_on(Path(runner.work_dir))
        self._since = time.perf_counter()
        self._write(runner)

    def after_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note how far it came."""
        meta = checkpoint["meta"]
        best = meta["best"] if meta["figures"] and abs(meta["best"]) != float("inf") else None
        if best is not None and best != self._record.get("best"):
            self._record |= {"best": best, "best_step": meta["step"]}
        self._record |= {"step": meta["step"], "figures": meta["figures"]}
        self._write(runner)

    def after_train(self, runner: Runner) -> None:
        """Note that it came to its end."""
        self._record["finished"] = True
        self._write(runner)

    def _go_on(self, work_dir: Path) -> None:
        """Keep of the record that is there what a resumed run still is."""
        try:
            old = read_record(work_dir)
        except InputError:  # damaged: the run goes on, and its time begins anew
            return
        self._before = old.seconds
        self._record |= {"began": old.began, "best": old.best, "best_step": old.best_step}

    def _write(self, runner: Runner) -> None:
        self._record["seconds"] = round(self._before + time.perf_counter() - self._since, 3)
        if distributed.rank() == 0:
            write_json(Path(runner.work_dir) / RECORD, self._record)
