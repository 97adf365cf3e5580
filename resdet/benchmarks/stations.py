"""Where the time of a net goes: each station's own seconds, those of the stations inside it not counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils.benchmark import timer

from resdet.detection import faster_rcnn

STATIONS = ("preprocess", "backbone", "neck", "rpn", "pooling", "head", "suppress", "backward", "optimizer", "rest")
"""``rpn`` and ``rest`` contain the losses, ``rest`` the drawing of regions as well."""


class Profile:
    """Seconds of each station, added up over all calls since :meth:`clear`.

    Args:
        places: (station, owner, name of a function of the owner), each replaced by a function that takes the time too.
            A device is waited for at each border.
    """

    def __init__(self, places: Sequence[tuple[str, Any, str]]) -> None:
        self.seconds = dict.fromkeys(STATIONS, 0.0)
        self._inside: list[float] = []
        for station, owner, name in places:
            setattr(owner, name, self.timed(station, getattr(owner, name)))

    def timed(self, station: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose own time is added to a station."""

        def call(*arguments: Any, **named: Any) -> Any:
            self._inside.append(0.0)
            started = timer()
            answer = function(*arguments, **named)
            spent = timer() - started
            self.seconds[station] += spent - self._inside.pop()
            if self._inside:
                self._inside[-1] += spent
            return answer

        return call

    def clear(self) -> None:
        """Start from zero."""
        self.seconds = dict.fromkeys(STATIONS, 0.0)


def places(net: nn.Module) -> list[tuple[str, Any, str]]:
    """The stations of a net of ours or of torchvision's; of another none."""
    if isinstance(net, faster_rcnn.FasterRCNN):
        head = net.roi_head
        modules = {"preprocess": net.preprocess, "backbone": net.backbone, "neck": net.neck, "rpn": net.rpn}
        modules |= {"pooling": head.pooling, "head": head.embedding}
        functions = [("head", head, "classify"), ("suppress", faster_rcnn, "suppress")]
    elif hasattr(net, "roi_heads") and hasattr(net, "transform"):
        head = net.roi_heads
        modules = {"preprocess": net.transform, "backbone": net.backbone.body, "rpn": net.rpn}
        modules |= {"neck": net.backbone.fpn} if hasattr(net.backbone, "fpn") else {}
        modules |= {"pooling": head.box_roi_pool, "head": head.box_head}
        functions = [("head", head.box_predictor, "forward"), ("suppress", head, "postprocess_detections")]
    else:
        return []
    return [(station, module, "forward") for station, module in modules.items()] + functions
