"""VPP-LLaVA itself: its published checkpoints on today's transformers."""

from vpp_adapters.vpp_llava.adapter import load_vpp_llava, vpp_adapter, vpp_converter

__all__ = ["load_vpp_llava", "vpp_adapter", "vpp_converter"]
