"""Weights in files: read without unpickling objects, load exactly, publish whole.

Published files are safetensors whose header holds one JSON object of facts (``backbone``, ``classes``, ``config``,
``metrics``, ``versions`` ...). Checkpoints of torchvision, timm and others are read as plain tensors.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from resdet.backbones.families import family_of
from resdet.backbones.libraries import LIBRARIES
from resdet.backbones.published import packaged_weights, read_published
from resdet.backbones.registry import BACKBONES
from resdet.backbones.vgg import from_timm
from resdet.errors import InputError, listed
from resdet.files import damaged_part
from resdet.unpickle import read_pickled

logger = logging.getLogger(__name__)
ENVELOPES = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "blobs")
"""Keys under which training scripts keep the weights, the best first."""
PREFIXES = ("module.", "_orig_mod.", "backbone.", "net.", "model.")
"""Of DDP, of torch.compile and of nets inside nets: dropped when every key has them."""
TWINS = {r"cifar-plain(\d+)": r"cifar-resnet\1", r"cifar-resnet(\d+)(-A)?": r"cifar-plain\1"}
TWINS |= {r"plain(18|34)": r"resnet\1-A", r"resnet(18|34)-A": r"plain\1"}


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a ``.safetensors``, ``.pth``, ``.pt`` or ``.pkl`` file.

    Training checkpoints are opened (:data:`ENVELOPES`) and prefixes that every key shares are dropped
    (:data:`PREFIXES`).

    Args:
        path: of the file.

    Returns:
        The state dict, on the CPU, and what :func:`publish` was told; of a checkpoint ``{"meta": ...}``, what the
        training script told about it, and nothing of other files from elsewhere.

    Raises:
        InputError: no such file; damaged; holds objects other than tensors, arrays and numbers, which only unpickling
            could read (it would run code of the file's author); holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, found="no such file", needed="weights: .safetensors, .pth, .pt or .pkl")
    if path.suffix == ".safetensors":
        content, metadata = read_published(path)
    else:
        check_whole(path)
        content = read_pickled(path)
        meta = content.get("meta") if isinstance(content, Mapping) else None
        metadata = {"meta": dict(meta)} if isinstance(meta, Mapping) else {}
    return _strip_prefixes(_open_envelope(content, path)), metadata


def check_whole(path: str | Path) -> None:
    """Refuse a checkpoint with a wrong checksum inside.

    Raises:
        InputError: a part of it is damaged.
    """
    if part := damaged_part(path):
        needed = "a whole copy of it, or another checkpoint of the run (best.pth for last.pth)"
        raise InputError(f"checkpoint {path}", found=f"damaged: the checksum of {part} is wrong", needed=needed)


def load_exactly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: object,
    allowed_missing: Sequence[str] = (),
    allowed_unexpected: Sequence[str] = (),
) -> int:
    """Copy a state dict into a module, or refuse and copy nothing.

    BN's ``num_batches_tracked`` counters may be absent on either side. A mis-shaped key counts as both unexpected and
    missing, so it is passed over when both are allowed.

    Args:
        module: receives the values.
        state: keys and tensors.
        source: the file, for messages.
        allowed_missing: patterns (``fc.*``) of module keys that may keep their values.
        allowed_unexpected: patterns of file keys that may be ignored.

    Returns:
        How many keys were copied.

    Raises:
        InputError: a key is missing, unexpected or mis-shaped, and not allowed to be; or a number is not finite.
    """
    own = module.state_dict()
    needed, given = ({key for key in keys if not key.endswith("num_batches_tracked")} for keys in (own, state))
    misshaped = {key for key in needed & given if own[key].shape != state[key].shape}
    missing, unexpected = (
        {key for key in keys | misshaped if not any(fnmatch(key, pattern) for pattern in allowed)}
        for keys, allowed in ((needed - given, allowed_missing), (given - needed, allowed_unexpected))
    )
    fit = (needed & given) - misshaped
    if missing or unexpected:
        shapes = {key: (list(state[key].shape), list(own[key].shape)) for key in misshaped & (missing | unexpected)}
        wrong = {
            "missing": missing - misshaped,
            "unexpected": unexpected - misshaped,
            "mis-shaped": {f"{key} {a} for {b}" for key, (a, b) in shapes.items()},
        }
        told = [f"{len(keys)} {name} ({listed(sorted(keys), shown=3)})" for name, keys in wrong.items() if keys]
        hint = "" if wrong["missing"] or wrong["unexpected"] else _class_count_hint(list(shapes.values()))
        exactly = f"exactly the {len(needed)} keys of {type(module).__name__}"
        raise InputError(source, found="; ".join([f"{len(fit)} keys fit", *told]) + hint, needed=exactly)
    sick = [k for k, v in state.items() if k in own and v.is_floating_point() and not v.isfinite().all()]
    if sick:  # oneDNN's ReLU would make a zero of a NaN, and the net would seem to work
        raise InputError(source, found=f"NaN or infinity in {listed(sick)}", needed="a checkpoint of finite numbers")
    module.load_state_dict({k: v for k, v in state.items() if k in own and k not in misshaped}, strict=False)
    return len(fit)


class NotFetched(InputError):
    """A library's weights that its server did not give."""


def init_backbone(
    name: str, init: str | Path | None = None, *, num_classes: int | None = None, new_classifier: bool = False
) -> nn.Module:
    """Build a backbone of the registry and fill it.

    Args:
        name: of :data:`BACKBONES`, ``timm/<model>`` or ``torchvision/<model>``.
        init: ``None`` for random weights; a file, published or of torchvision or timm; or ``"pretrained"`` for the
            weights in the package (``resnet18-half``) or the library's own download (library names).
        num_classes: K of the classifier. ``None``: features are wanted, not logits; the layer of classes becomes the
            identity, and that of the file is ignored.
        new_classifier: leave ``fc`` random whatever ``init`` holds, for other classes than the file's.

    Returns:
        The net, in train mode.

    Raises:
        InputError: unknown name; the file is of another architecture or class count; the download failed.
    """
    net = BACKBONES.build(name, num_classes=1000 if num_classes is None else num_classes)
    classifier = family_of(net, f"backbone {name!r}").class_layer
    if init is not None:
        if init == "pretrained":
            init = packaged_weights(name) or init
        state = _download(name) if init == "pretrained" else read_backbone(name, Path(init))[0]
        free = (f"{classifier}.*",) if num_classes is None or new_classifier else ()
        loaded = load_exactly(net, state, source=init, allowed_missing=free, allowed_unexpected=free)
        logger.info("backbone %s: %d tensors of %s", name, loaded, init)
    if num_classes is None:
        net.set_submodule(classifier, nn.Identity())
    return net


def _open_envelope(content: object, path: Path) -> dict[str, Tensor]:
    for _ in range(2):  # some keep the model inside the state
        if isinstance(content, Mapping):
            content = next((content[key] for key in ENVELOPES if isinstance(content.get(key), Mapping)), content)
    if isinstance(content, Mapping):
        state = {key: _as_tensor(value) for key, value in content.items()}
        if state and all(isinstance(value, Tensor) for value in state.values()):
            return state
    found = (
        f"keys {listed(list(map(str, content)), shown=3)}" if isinstance(content, Mapping) else type(content).__name__
    )
    needed = f"a state dict, bare or under one of {', '.join(ENVELOPES)}"
    raise InputError(path, found=found, needed=needed)


def _as_tensor(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach()  # without the hooks that a file may give it
    if isinstance(value, (np.ndarray, np.number)) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))  # a copy in this machine's order
    return value


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES * 2:  # twice: "model.module." comes in either order
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def read_backbone(name: str, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights for a backbone, under our names, from a file of ours, of torchvision, of timm or of others.

    A file that names its net must name this one. Others name none; what they are taken for is said where their shapes
    would fit another net of the registry too, as those of plain nets fit residual nets without projections.

    Args:
        name: of the registry.
        path: of the file.

    Returns:
        The state dict, and the facts that :func:`read_weights` finds.

    Raises:
        InputError: as :func:`read_weights`; weights of another net.
    """
    if not path.exists():
        downloads = [f"init=pretrained with backbone={known}" for known in BACKBONES[name].weights]
        needed = " or ".join(["a file of weights, as tools/train_cls.py publishes it", *downloads])
        raise InputError(f"init of backbone {name!r}: {path}", found="no such file", needed=needed)
    state, metadata = read_weights(path)
    named = metadata.get("backbone") or _backbone_of_run(metadata)
    if named is not None and _architecture(str(named)) != _architecture(name):
        raise InputError(path, found=f"weights of backbone {named!r}", needed=f"weights of backbone {name!r}")
    if named is None and (twin := _twin(name)):
        logger.warning("%s does not name its net: taken for %s, whose shapes %s has too", path, name, twin)
    if name.partition("/")[0] not in LIBRARIES:
        renamed = {re.sub(r"^linear\.", "fc.", key): value for key, value in state.items()}  # of many CIFAR nets
        state = from_timm(renamed if len(renamed) == len(state) else state)
    return state, metadata


def _backbone_of_run(metadata: Mapping[str, Any]) -> str | None:
    """The backbone that a checkpoint of ours names."""
    named: Any = metadata
    for key in ("meta", "model", "backbone"):
        named = named.get(key) if isinstance(named, Mapping) else None
    return named if isinstance(named, str) else None


def _twin(name: str) -> str | None:
    """A net of other arithmetic with tensors of the same names and shapes: plain, and residual without projections."""
    return next((re.sub(own, other, name) for own, other in TWINS.items() if re.fullmatch(own, name)), None)


def _architecture(name: str) -> str:
    """The name without its library and its tag of weights: ``timm/resnet50.a1_in1k`` is a ``resnet50``."""
    return name.rpartition("/")[2].partition(".")[0]


def _download(name: str) -> dict[str, Tensor]:
    library, _, model = name.partition("/")
    if library not in LIBRARIES or not model:
        known = BACKBONES[name].weights
        needed = "a file" + (f"; or the names {', '.join(known)}, which have downloads" if known else "")
        raise InputError(f"backbone {name!r}, init='pretrained'", found="no published download", needed=needed)
    try:
        if library == "timm":
            import timm

            return timm.create_model(model, pretrained=True).state_dict()
        return torchvision.models.get_model(model, weights="DEFAULT").state_dict()
    except Exception as error:  # the libraries raise their own, of urllib, httpx, huggingface_hub ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        needed = "network access (the library keeps the download), or the path of a weights file as init"
        raise NotFetched(f"backbone {name!r}, init='pretrained'", found=reason, needed=needed) from error


def _class_count_hint(shapes: Sequence[tuple[list[int], list[int]]]) -> str:
    """The usual cause, when nothing but the first dimension of some layers differs (in the file, in the module)."""
    if any(a[1:] != b[1:] for a, b in shapes):
        return ""
    pairs = {(a[0], b[0]) for a, b in shapes}
    for a, b in sorted(pairs):
        if pairs == {(a, b), (4 * (a - 1), 4 * (b - 1))}:  # a detector: K + 1 scores and 4 K deltas
            return f"; class count {a - 1} vs {b - 1}"
    if len(pairs) == 1:
        a, b = pairs.pop()
        return f"; class count {a} vs {b} (a detector's scores count the background too)"
    return ""
