"""Measurements behind the figures in the docs; `make bench` runs them all."""
