"""Faster R-CNN on residual networks, as in "Deep Residual Learning for Image Recognition", on today's PyTorch."""

from resdet.version import __version__ as __version__


def __getattr__(name: str) -> object:
    """``resdet.Detector`` and friends, imported when asked for, so that ``import resdet`` costs nothing."""
    if name in ("Classifier", "Detector", "Localizer"):
        from resdet import api

        return getattr(api, name)
    if name == "OnnxDetector":  # needs no torch
        from resdet.deploy.onnx_detector import OnnxDetector

        return OnnxDetector
    if name == "BACKBONES":
        from resdet.backbones.registry import BACKBONES

        return BACKBONES
    raise AttributeError(f"module 'resdet' has no attribute {name!r}")
