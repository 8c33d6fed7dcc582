"""Pretraining the local prompt's DETR on boxes: the images, the set loss, `train_detector`."""

from vpp_plugins.train.detector.loss import Objects, detection_loss, letterboxed, stack_objects
from vpp_plugins.train.detector.train import train_detector

__all__ = ["Objects", "detection_loss", "letterboxed", "stack_objects", "train_detector"]
