"""Figures as SVG: effects, curves, what a search found, the strips beside the verdict."""
