"""Every model of images and text that transformers has and no other adapter claims."""

from vpp_adapters.generic.adapter import vpp_adapter

__all__ = ["vpp_adapter"]
