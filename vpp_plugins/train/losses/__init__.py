"""Losses beside the answer's own, one file each."""

from vpp_plugins.train.losses.detection import AuxiliaryDetection, named_objects

__all__ = ["AuxiliaryDetection", "named_objects"]
