"""Trained nets as functions of images: ``resdet.Detector(config, checkpoint)(image)`` and its like."""

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
