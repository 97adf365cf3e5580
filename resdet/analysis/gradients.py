"""How large the loss gradient is through depth (section 4.1 of the paper: with BN it does not vanish in plain nets).

BN normalises by the batch, as in training, and keeps its running statistics; all else is in eval mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resdet.analysis.chart import Line, Panel
from resdet.backbones.resnet import blocks_of, stages_of
from resdet.classification.classifier import Classifier
from resdet.errors import InputError


class GradientNorms(NamedTuple):
    """L2 norms, in the order of the layers."""

    blocks: dict[str, float]
    """At each block's output: of one image's loss, the mean over the images. Empty for a net without blocks."""
    weights: dict[str, float]
    """Of each convolution's weight: of a batch's mean loss, the mean over the batches."""


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """BN layers normalise by the batch, as in training, but remember nothing of it; all else is in eval mode."""
    modes = {module: module.training for module in net.modules()}
    layers = {module: module.track_running_stats for module in net.modules() if isinstance(module, _BatchNorm)}
    net.eval()
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, tracks in layers.items():
            layer.track_running_stats = tracks


def gradient_norms(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]]) -> GradientNorms:
    """Norms of the gradient of the training loss.

    Args:
        classifier: any net; its modes, weights and statistics are as before afterwards.
        batches: (N, 3, H, W) images and (N,) labels, of training.

    Raises:
        InputError: there is no batch.
    """
    device, net = classifier.mean.device, classifier.net
    blocks = set(blocks_of(net)) if stages_of(net) else set()
    weights = {name: module.weight for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        outputs.setdefault(name, output)  # the first: with activation checkpointing there is a second pass

    at_blocks, at_weights, images_seen, batches_seen = 0, 0, 0, 0
    with ExitStack() as stack:
        for name, module in net.named_modules():
            if module in blocks:
                stack.enter_context(module.register_forward_hook(lambda _, __, out, name=name: keep(name, out)))
        stack.enter_context(batch_statistics(classifier))
        stack.enter_context(torch.enable_grad())
        for images, labels in batches:
            outputs.clear()
            loss = classifier.loss(images.to(device), labels.to(device))["loss_cls"]
            names = list(outputs)
            gradients = torch.autograd.grad(loss, [*outputs.values(), *weights.values()])
            per_image = [g.flatten(1).norm(dim=1).sum() * len(images) for g in gradients[: len(names)]]
            at_blocks = at_blocks + torch.stack([*per_image, loss.new_zeros(())]).double()
            at_weights = at_weights + torch.stack([g.norm() for g in gradients[len(names) :]]).double()
            images_seen, batches_seen = images_seen + len(images), batches_seen + 1
    if not batches_seen:
        raise InputError("gradient norms", found="no batch of images", needed="at least one")
    return GradientNorms(
        dict(zip(names, (at_blocks / images_seen).tolist(), strict=False)),
        dict(zip(weights, (at_weights / batches_seen).tolist(), strict=True)),
    )


def gradient_panels(nets: Mapping[str, GradientNorms]) -> list[Panel]:
    """At the blocks' outputs and at the weights, shortcuts' projections left out."""
    blocks, weights = [], []
    for colour, (name, norms) in enumerate(nets.items()):
        on_path = [norm for layer, norm in norms.weights.items() if "downsample" not in layer]
        weights.append(Line(range(1, len(on_path) + 1), on_path, name, colour))
        if norms.blocks:
            blocks.append(Line(range(1, len(norms.blocks) + 1), list(norms.blocks.values()), name, colour))
    panels = (
        Panel("gradient at the outputs of the blocks", "block", "L2 norm, mean over images", blocks, log=True),
        Panel("gradient at the weights", "convolution", "L2 norm, mean over batches", weights, log=True),
    )
    return [panel for panel in panels if panel.lines]
