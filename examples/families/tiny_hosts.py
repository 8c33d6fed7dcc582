"""Tiny random hosts of every named family, as `vpp train --dry-run` trains them. Nothing is downloaded."""

from vpp_plugins.train.tiny_hosts import FAMILIES, WORDS, TinyFamily, tiny_host, tokenizer

Family = TinyFamily

__all__ = ["FAMILIES", "WORDS", "Family", "TinyFamily", "tiny_host", "tokenizer"]
