"""Invert, refine and edit whole datasets of face photographs with GANs."""

__version__ = "0.1.0"
