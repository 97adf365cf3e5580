"""BN statistics over the training set, computed after pre-training and then frozen (appendix A of the paper).

A running average forgets: it describes the last few hundred batches, under weights that were still moving. Here the
weights stand still, and each layer's mean and variance are those of *all* inputs that reached it: per-batch moments,
weighted by their number of values and merged in float64 (Chan, Golub and LeVeque 1983), which equals the moments of the
concatenation up to the float32 rounding of each batch's own moments.

What remains approximate is what reaches a layer. During the one pass the layers before it normalise by the statistics
of the batch, not by the final ones, so deeper layers see activations that depend slightly on how images were batched
(the usual "precise BN"; large batches make it vanish). ``layer_by_layer=True`` removes that too: one pass per layer, in
which all earlier layers are already frozen at their final statistics.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from resdet.errors import InputError


def compute_batchnorm_statistics(
    net: nn.Module, batches: Iterable[Tensor], *, device: torch.device | str, layer_by_layer: bool = False
) -> int:
    """Give each BN layer the population mean and variance of its inputs over all the batches.

    Layers that are no torch BatchNorm (a ``FrozenBatchNorm``) or track no statistics keep what they have, as do layers
    that no batch reaches. Everything else in the net runs in eval mode (no dropout). Modes, momenta and batch counters
    are as before afterwards; so are the statistics when an error ends the pass. When ``torch.distributed`` is set up,
    every process brings its own share of the batches and all get the statistics of the union.

    Args:
        net: on ``device`` already; a bare net, or a ``Classifier`` to feed it uint8 images.
        batches: (N, 3, H, W) tensors that the net takes; batch sizes may differ.
        device: where the batches are moved.
        layer_by_layer: one pass per layer, in the order of definition (see above); ``batches`` must then be a
            collection or a loader that yields the same images each time, not an iterator.

    Returns:
        Number of images used, over all processes; 0 if the net has no BN layer to compute.

    Raises:
        InputError: there is no batch, or a layer's statistics are not finite.
    """
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    }
    modes = {module: module.training for module in net.modules()}
    saved = {layer: (layer.momentum, *(buffer.clone() for buffer in _buffers(layer))) for layer in layers.values()}
    groups = [{name: layer} for name, layer in layers.items()] if layer_by_layer else [layers] if layers else []
    images = 0
    try:
        net.eval()
        with torch.compiler.set_stance("force_eager"):  # CUDA graphs write the next batch's moments over the last one's
            for group in groups:
                images = _measure(net, group, batches, device=torch.device(device))
    except BaseException:
        for layer, (_, *buffers) in saved.items():
            for buffer, before in zip(_buffers(layer), buffers, strict=True):
                buffer.copy_(before)
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, (momentum, *_, counter) in saved.items():
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(counter)
    return images


class _Moments:
    """Count, mean and sum of squared deviations of one layer's inputs, merged in float64 (Chan's form)."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=layer.running_mean.device)
        self.mean = torch.zeros_like(layer.running_mean, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)

    def add(self, layer: _BatchNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Forward hook: with momentum 1 the layer's buffers hold this batch's mean and unbiased variance."""
        count = inputs[0].numel() // inputs[0].shape[1]
        mean, variance = layer.running_mean.double(), layer.running_var.double()
        difference, total = mean - self.mean, self.count + count
        self.squares += variance * (count - 1) + difference**2 * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total

    def reduce(self) -> None:
        """Merge over the processes."""
        total = self.count.clone()
        dist.all_reduce(total)
        mean = self.mean * (self.count / total.clamp(min=1))
        dist.all_reduce(mean)
        self.squares += self.count * (self.mean - mean) ** 2
        dist.all_reduce(self.squares)
        self.count, self.mean = total, mean


@torch.no_grad()
def _measure(net: nn.Module, layers: dict[str, _BatchNorm], batches: Iterable[Tensor], *, device: torch.device) -> int:
    """One pass: the given layers normalise by batch statistics and end with those of all batches."""
    moments = {name: _Moments(layer) for name, layer in layers.items()}
    before = {name: (layer.running_mean.clone(), layer.running_var.clone()) for name, layer in layers.items()}
    hooks = [layer.register_forward_hook(moments[name].add) for name, layer in layers.items()]
    images = torch.zeros((), dtype=torch.int64, device=device)
    try:
        for layer in layers.values():
            layer.training, layer.momentum = True, 1.0
            layer.running_mean.zero_()  # 0 x an old value that is not finite would survive
            layer.running_var.zero_()
        for batch in batches:
            net(batch.to(device, non_blocking=True))
            images += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            layer.training = False
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(images)
        for moment in moments.values():
            moment.reduce()
    if not images:
        raise InputError("BN statistics", found="no batch of images", needed="at least one (layer by layer: each pass)")
    for name, layer in layers.items():
        moment, (old_mean, old_variance) = moments[name], before[name]
        mean, variance = moment.mean, moment.squares / moment.count
        if not moment.count:
            mean, variance = old_mean, old_variance
        elif not (mean.isfinite() & variance.isfinite()).all():
            raise InputError(
                f"BN statistics of layer {name!r}", found="nan or inf", needed="a net that did not diverge"
            )
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    return int(images)


def _buffers(layer: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    return layer.running_mean, layer.running_var, layer.num_batches_tracked
