"""Sweeps of adapters trained on bad images and used as the negative prompt, measured against controls."""

__version__ = "0.1.0"
