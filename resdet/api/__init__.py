"""Trained nets as functions of images: ``resdet.Detector("best.pth")(image)`` and its like."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resdet.api.classifier import Classifications, Classifier
    from resdet.api.detector import Detector
    from resdet.api.infer import infer_files
    from resdet.api.localizer import Localizer
    from resdet.api.pictures import Picture, to_tensor, usable_device

__all__ = [
    "Classifications",
    "Classifier",
    "Detector",
    "Localizer",
    "Picture",
    "infer_files",
    "to_tensor",
    "usable_device",
]


def __getattr__(name: str) -> object:
    """Names of this room, imported when asked for: a detector needs no localizer."""
    if name == "Detector":
        from resdet.api.detector import Detector as found
    elif name in ("Classifier", "Classifications"):
        from resdet.api import classifier as room

        return getattr(room, name)
    elif name == "Localizer":
        from resdet.api.localizer import Localizer as found
    elif name == "infer_files":
        from resdet.api.infer import infer_files as found
    elif name in ("Picture", "to_tensor", "usable_device"):
        from resdet.api import pictures

        return getattr(pictures, name)
    else:
        raise AttributeError(f"module 'resdet.api' has no attribute {name!r}")
    return found
