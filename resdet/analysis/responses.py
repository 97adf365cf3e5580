"""Standard deviation of each 3x3 layer's response (Fig. 7 of the paper): residual nets respond less than plain ones.

A response is what BN makes of the convolution, before the non-linearity and before the addition. Where no BN follows
the convolution directly (the last one of a pre-activation block, a VGG without BN) it is the convolution's own output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resdet.analysis.chart import Line, Panel
from resdet.classification.classifier import Classifier
from resdet.errors import InputError


@torch.no_grad()
def layer_responses(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Standard deviation over all images, channels and places, by BN's running statistics.

    Args:
        classifier: any net; put into eval mode.
        batches: images as :meth:`resdet.classification.classifier.Classifier.predict` takes them, and labels.

    Returns:
        Name of the convolution -> deviation, in the order in which the layers run.

    Raises:
        InputError: the net has no 3x3 convolution, or there is no image.
    """
    classifier.eval()
    totals: dict[str, Tensor] = {}  # count, sum and sum of squares of each layer, over the batches
    parts: dict[str, Tensor] = {}  # those of this pass
    newest: list[tuple[str, Tensor]] = []  # the convolution that ran last, and its output

    def after_convolution(name: str, output: Tensor) -> None:
        parts[name] = _moments(output)
        newest[:] = [(name, output)]

    def after_norm(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if newest and inputs[0] is newest[0][1]:
            parts[newest[0][0]] = _moments(output)

    with ExitStack() as hooks:
        for name, module in classifier.net.named_modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                hook = module.register_forward_hook(lambda _, __, out, name=name: after_convolution(name, out))
                hooks.enter_context(hook)
            elif isinstance(module, _BatchNorm):
                hooks.enter_context(module.register_forward_hook(after_norm))
        for images, _ in batches:
            classifier.predict(images)
            for name, moments in parts.items():
                totals[name] = totals.get(name, 0) + moments
            parts.clear()
    if not totals:
        found = "no response of a 3x3 convolution"
        raise InputError("layer responses", found=found, needed="images, and a net of them")
    count, total, squares = torch.stack(list(totals.values())).unbind(dim=1)
    deviations = (squares / count - (total / count) ** 2).clamp(min=0).sqrt()
    return dict(zip(totals, deviations.tolist(), strict=True))


def response_panels(nets: Mapping[str, Mapping[str, float]]) -> list[Panel]:
    """Fig. 7: in the order of the layers, and sorted."""
    panels = []
    for title, xlabel, arrange in (
        ("in the order of the layers", "3x3 layer", list),
        ("sorted", "3x3 layer, by size", lambda values: sorted(values, reverse=True)),
    ):
        lines = [
            Line(range(1, len(responses) + 1), arrange(responses.values()), name, colour)
            for colour, (name, responses) in enumerate(nets.items())
        ]
        panels.append(Panel(f"layer responses, {title}", xlabel, "standard deviation", lines))
    return panels


def _moments(values: Tensor) -> Tensor:
    """(3,) float64: count, sum, sum of squares."""
    values = values.double()
    return torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])
