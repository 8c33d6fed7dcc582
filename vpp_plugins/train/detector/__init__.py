"""Pretraining the local prompt's DETR on boxes."""

from vpp_plugins.train.detector.train import train_detector

__all__ = ["train_detector"]
