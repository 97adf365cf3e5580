"""The analyses of :mod:`resdet.analysis` for runs, configs and checkpoints: ``tools/analyze_cls.py``.

Each writes a picture and a JSON into a folder. Checkpoints tell their nets; the config tells the data, so that nets of
several kinds fit in one figure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from resdet.analysis import class_errors, gradients, lesions, paths, responses, studies
from resdet.analysis import curves as error_curves
from resdet.analysis.chart import Bars, Panel, draw, draw_images
from resdet.classification.classifier import Classifier
from resdet.datasets.cifar import ArrayData
from resdet.datasets.resident import ResidentDataset
from resdet.engine import distributed
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.experiment import data_loader
from resdet.engine.progress import shown
from resdet.engine.tasks.classification import load_classifier
from resdet.errors import InputError
from resdet.evaluation.report import provenance, write_json

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig

GRADIENT_IMAGES = 512  # four of the paper's CIFAR batches
PATH_IMAGES = 128  # one of them


class Source(NamedTuple):
    """What an analysis is made from, and where it is written."""

    config: str
    """Path."""
    checkpoints: Sequence[str]
    """Paths, or ``NAME=path``."""
    options: Sequence[str] = ()
    """Overrides of the config."""
    limit: int | None = None
    """Images; None: all, or the analysis's own number."""
    out: str | Path = "analysis"
    """Folder."""


class Images(NamedTuple):
    """A share of a data set."""

    config: ExperimentConfig
    data: Dataset
    batches: Iterable[tuple[Tensor, Tensor]]
    rows: list[int]
    """Which images of the whole set, in the order of the batches."""


def curves(runs: Sequence[str], *, out: str | Path = "analysis") -> list[Path]:
    """``curves.png`` and ``curves.json``: training and test error of several runs (work dirs, or ``NAME=dir``)."""
    named = name_paths(runs)
    errors = {name: error_curves.read_errors(path) for name, path in named.items()}
    record = {
        name: {
            "work_dir": named[name],
            **{series: sorted(values.items()) for series, values in e._asdict().items() if values is not None},
        }
        for name, e in errors.items()
    }
    picture = draw([error_curves.error_panel(errors)], Path(out) / "curves.png")
    return [picture, _write(Path(out) / "curves.json", {"runs": record, **provenance(None, None)})]


def study_tables(runs: Sequence[str], *, out: str | Path = "analysis") -> str:
    """Tables 1 and 2 of "Identity mappings" with the errors of runs of ``configs/cifar10_resnet110_study.py``.

    Of a run with ``--seeds`` the mean and the deviation count. Returns Markdown, and writes ``studies.json``.

    Raises:
        InputError: a folder that is not the work dir of a finished run of a net defined by its config.
    """
    results = [_study_result(Path(run)) for run in runs]
    lines = {title: studies.table(rows, results) for title, rows in studies.TABLES.items()}
    _write(Path(out) / "studies.json", {"tables": lines, "runs": results, **provenance(None, None)})
    return "\n\n".join(studies.as_markdown(title, rows) for title, rows in lines.items())


def _study_result(run: Path) -> studies.Result:
    seeds = run / "seeds.json"
    first = next(iter(sorted(run.glob("seed*/last.pth"))), run / "last.pth")
    record = seeds if seeds.is_file() else run / "metrics.json"
    if not record.is_file():
        needed = "the work dir of a finished tools/train_cls.py"
        raise InputError(f"run {run}", found=f"no {record.name}", needed=needed)
    net = read_checkpoint(first)["meta"]["model"].get("define")
    if net is None:
        needed = "a run of configs/cifar10_resnet110_study.py, or of another config with a section backbone"
        raise InputError(f"run {run}", found="a net of the registry", needed=needed)
    content = json.loads(record.read_text(encoding="utf-8"))
    if record == seeds:
        mean, deviation = content["mean_and_deviation"]["top1_error"]
        return studies.Result(net, 100 * mean, 100 * deviation)
    return studies.Result(net, 100 * content["figures"]["top1_error"])


def layer_responses(source: Source) -> list[Path]:
    """``responses.png`` and ``.json``: Fig. 7, on test images."""
    images, nets = _images(source, "test_data")
    found = {name: responses.layer_responses(net, _shown(images)) for name, net in nets.items()}
    return _written(source, images, "responses", responses.response_panels(found), {"responses": found})


def gradient_norms(source: Source) -> list[Path]:
    """``gradients.png`` and ``.json``, on training images."""
    images, nets = _images(source, "train_data", usual=GRADIENT_IMAGES)
    found = {name: gradients.gradient_norms(net, _shown(images)) for name, net in nets.items()}
    return _written(source, images, "gradients", gradients.gradient_panels(found), {"gradients": found})


def net_lesions(source: Source, *, draws: int = 5) -> list[Path]:
    """``lesions.png`` and ``.json`` of one net, on test images."""
    images, nets = _images(source, "test_data")
    found = lesions.measure_lesions(_only(nets), _shown(images), draws=draws, seed=images.config.run.seed)
    return _written(source, images, "lesions", lesions.lesion_panels(found), {"draws": draws, **found._asdict()})


def net_paths(source: Source, *, samples: int = 20) -> list[Path]:
    """``paths.png`` and ``.json`` of one net, on training images."""
    images, nets = _images(source, "train_data", usual=PATH_IMAGES)
    found = paths.measure_paths(_only(nets), images.batches, samples=samples, seed=images.config.run.seed)
    lengths = {"mean_length": found.mean_length, "effective_length": found.effective_length}
    figures = {"samples": samples, **found._asdict(), **lengths}
    return _written(source, images, "paths", paths.path_panels(found), figures)


def error_report(source: Source, *, worst: int = 32) -> list[Path]:
    """``errors.png``, ``worst.png`` and ``errors.json`` of one net, on test images."""
    images, nets = _images(source, "test_data")
    answers = class_errors.ask(_only(nets), _shown(images))
    classes = images.data.classes
    rows = class_errors.class_rows(answers, classes)
    pairs = class_errors.worst_pairs(answers, classes, count=100)
    described = [
        {
            "image": images.rows[place],
            "true": classes[answers.labels[place]],
            "predicted": classes[answers.predicted[place]],
            "loss": float(answers.losses[place]),
        }
        for place in class_errors.worst_images(answers, count=worst)
    ]
    error = float((answers.labels != answers.predicted).double().mean())
    figures = {"top1_error": error, "classes": rows, "confusions": pairs, "worst_images": described}
    written = _written(source, images, "errors", class_errors.error_bars(rows, pairs), figures)
    sheet = draw_images(
        [_one_view(images.data[row["image"]][0]) for row in described],
        [f"{row['true']}\n→ {row['predicted']}, {row['loss']:.1f}" for row in described],
        Path(source.out) / "worst.png",
        title="highest loss: true class → answer, cross-entropy",
    )
    return [written[0], sheet, written[1]]


def name_paths(texts: Sequence[str]) -> dict[str, Path]:
    """``NAME=path`` or a path, named by its folder: the run's, of a checkpoint the one it lies in.

    Raises:
        InputError: two have the same name.
    """
    named: dict[str, Path] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or not name or Path(text).exists():
            path = Path(text)
            name = (path.absolute().parent if path.suffix == ".pth" else path.absolute()).name
        else:
            path = Path(rest)
        if name in named:
            raise InputError(f"{named[name]} and {path}", found=f"both are called {name!r}", needed="NAME=path for one")
        named[name] = path
    return named


def choose_rows(total: int, limit: int | None, *, seed: int = 0) -> list[int]:
    """Images spread evenly over a set, so that one sorted by class gives of each, in random order.

    Raises:
        InputError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError("--limit", found=limit, needed="1 or more images")
    count = min(total, limit or total)
    spread = torch.arange(count) * total // count
    return spread[torch.randperm(count, generator=torch.Generator().manual_seed(seed))].tolist()


def _images(source: Source, section: str, usual: int | None = None) -> tuple[Images, dict[str, Classifier]]:
    """Test images in test batches, or training images in training batches, on one process; and the nets."""
    config = load_config(source.config, source.options)
    if config.task.name != "classification":
        found = f"task = {config.task.name!r}"
        raise InputError(f"config {source.config}", found=found, needed="a classification config")
    data = config.task.test_data(config) if section == "test_data" else config.task.training_data(config)
    rows = choose_rows(len(data), usual if source.limit is None else source.limit, seed=config.run.seed)
    loader = config.loader
    if section == "train_data":
        loader = loader.updated(test_batch_size=loader.batch_size)
    nets = {}
    for name, path in name_paths(source.checkpoints).items():
        nets[name] = load_classifier(path, data.classes).to(distributed.device(), memory_format=torch.channels_last)
    return Images(config, data, data_loader(_subset(data, rows), loader), rows), nets


def _only(nets: dict[str, Classifier]) -> Classifier:
    (net,) = nets.values()
    return net


def _subset(data: Dataset, rows: list[int]) -> Dataset:
    """Some images of a set; one that lives on the device stays of its kind."""
    if not isinstance(data, ResidentDataset):
        return Subset(data, rows)
    whole = data.data
    some = ResidentDataset(
        ArrayData(whole.images[rows], whole.labels[rows], whole.classes, whole.source), augmentation=data.augmentation
    )
    some.fill = data.fill
    return some


def _shown(images: Images) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches on the device, with a progress bar on a terminal."""
    return shown(images.batches, len(images.batches.batch_sampler))


def _one_view(image: Tensor | Sequence[Tensor]) -> Tensor:
    """The image, or the first of its views."""
    return image if isinstance(image, Tensor) and image.ndim == 3 else image[0]


def _written(source: Source, images: Images, name: str, panels: Sequence[Panel | Bars], figures: dict) -> list[Path]:
    """A picture, and the figures with where they came from."""
    named = name_paths(source.checkpoints)
    nets = {name: provenance(None, path)["checkpoint"] for name, path in named.items()}
    origin = provenance(source.config, None, seed=images.config.run.seed, config_text=images.config.text)
    del origin["checkpoint"]
    record = {**figures, "images": len(images.rows), "checkpoints": nets, **origin}
    out = Path(source.out)
    return [draw(panels, out / f"{name}.png"), _write(out / f"{name}.json", record)]


def _write(path: Path, record: dict) -> Path:
    write_json(path, record)
    return path
