"""Foreign checkpoints as files of ours: ``convert_file("model_final_280758.pkl", "frcnn_r50_fpn.pth")``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from resdet.backbones.published import file_hash, publish
from resdet.backbones.registry import BACKBONES
from resdet.backbones.weights import load_exactly, read_weights
from resdet.convert.renaming import Channels, Converted, Foreign, StrideOn, Style, check_finite
from resdet.convert.states import convert
from resdet.detection import build
from resdet.engine.calls import Call
from resdet.engine.checkpoints import write_checkpoint
from resdet.errors import InputError
from resdet.labels import COCO_CLASSES, VOC_CLASSES
from resdet.settings import arguments_of
from resdet.version import __version__

KNOWN_CLASSES = {len(names): names for names in (COCO_CLASSES, VOC_CLASSES)}
"""Class names that a count stands for, unless the file or the user tells others."""


class Report(NamedTuple):
    """What became of a file."""

    kind: str
    tensors: int
    """Number of tensors written."""
    notes: tuple[str, ...]
    """The source's conventions, and how they were taken over."""
    classes: tuple[str, ...]
    """Empty for a backbone."""
    out: Path


def convert_file(
    source: str | Path,
    out: str | Path,
    *,
    classes: str | Sequence[str] | None = None,
    style: Style | None = None,
    channels: Channels | None = None,
    stride_on: StrideOn | None = None,
    config: str | Path | None = None,
    batchnorm_eps: float | None = None,
) -> Report:
    """Write a foreign file as one of ours: a detector as a checkpoint, a backbone as published weights.

    Args:
        source: ``.pth``, ``.pt``, ``.pkl`` or ``.safetensors``; read without running anything from it.
        out: ``.pth`` for a detector, ``.safetensors`` for a backbone.
        classes: names in the order of the labels, or a text: names with commas between them, or a file with one name a
            line. Needed where neither the file nor their number (80: COCO, 20: VOC) tells.
        style: of pixels and strides, where the file does not tell.
        channels: order of the source's pixels, likewise.
        stride_on: the convolution of its bottlenecks that has the stride, likewise.
        config: the source's own: detectron2's ``.yaml``, mmdetection's ``.py``; read, not run.
        batchnorm_eps: of the source's BN layers, where it is not what its kind has.

    Raises:
        InputError: the file is damaged, hostile or of an unknown kind; some of it has no place; the names are missing
            or too many; ``out`` has another suffix or cannot be written.
    """
    source, out = Path(source), Path(out)
    if out.suffix not in (".pth", ".safetensors"):
        needed = "a name that ends in .pth (detectors) or .safetensors (backbones)"
        raise InputError(out, found=f"suffix {out.suffix!r}", needed=needed)
    names = _read_names(classes)
    state, metadata = read_weights(source)
    digest = file_hash(source)
    foreign = Foreign(
        str(source),
        state,
        metadata.get("meta", {}),
        digest,
        style,
        batchnorm_eps,
        None if names is None else len(names),
        channels,
        stride_on,
        None if config is None else _read_text("--config", Path(config)),
    )
    converted = convert(foreign)
    check_finite(converted.state, source=str(source))
    _check_suffix(out, ".safetensors" if converted.builder is None else ".pth", converted.kind)
    origin = {"file": source.name, "sha256": digest, "kind": converted.kind, "notes": converted.notes}
    if converted.builder is None:
        return _write_backbone(converted, out, origin)
    return _write_detector(converted, out, origin, names)


def _write_detector(converted: Converted, out: Path, origin: dict, names: tuple[str, ...] | None) -> Report:
    classes = _choose_names(converted, names, origin["file"])
    builder = getattr(build, str(converted.builder))
    net = builder(**converted.arguments)
    load_exactly(net, converted.state, source=origin["file"])
    state = {f"net.{key}": value.detach() for key, value in net.state_dict().items()}
    meta = {
        "task": "detection",
        "classes": list(classes),
        "model": Call(builder, arguments_of(builder)(**converted.arguments)).describe(),
        "converted_from": origin,
        "version": __version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(out, {"meta": meta, "state_dict": state})
    return Report(converted.kind, len(state), tuple(converted.notes), classes, out)


def _write_backbone(converted: Converted, out: Path, origin: dict) -> Report:
    name, count = converted.arguments["backbone"], converted.arguments.get("num_classes")
    net = BACKBONES.build(name, **({} if count is None else {"num_classes": count}))
    free = ("fc.*",) if count is None else ()
    load_exactly(net, converted.state, source=origin["file"], allowed_missing=free)
    state = {key: value for key, value in net.state_dict().items() if count is not None or not key.startswith("fc.")}
    publish(out, state, {"backbone": name, "converted_from": origin, "version": __version__})
    return Report(converted.kind, len(state), tuple(converted.notes), (), out)


def _read_names(classes: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if classes is None or not isinstance(classes, str):
        return None if classes is None else tuple(classes)
    path = Path(classes)
    lines = _read_text("--classes", path).splitlines() if path.is_file() else classes.split(",")
    names = tuple(name.strip() for name in lines if name.strip())
    if len(set(names)) < max(len(names), 1):
        raise InputError("classes", found=f"{classes!r}", needed="different names, with commas or in lines of a file")
    return names


def _read_text(switch: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{switch} {path}", found=error, needed="a text file") from error


def _choose_names(converted: Converted, names: tuple[str, ...] | None, source: str) -> tuple[str, ...]:
    count = converted.arguments["num_classes"]
    chosen = names or converted.classes or KNOWN_CLASSES.get(count)
    if chosen is None:
        needed = f"--classes: {count} names in the order of the labels, with commas, or a file with one a line"
        raise InputError(source, found=f"{count} classes without names", needed=needed)
    if len(chosen) != count:
        where = "--classes" if names else f"{source}: its class names"
        raise InputError(where, found=f"{len(chosen)} names", needed=f"{count}, as the net has classes")
    return tuple(chosen)


def _check_suffix(out: Path, needed: str, kind: str) -> None:
    if out.suffix != needed:
        raise InputError(out, found=f"suffix {out.suffix!r} for {kind}", needed=f"a name that ends in {needed}")
