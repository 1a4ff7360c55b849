"""The interface of face parsers, and the parser without faces.

A parser is any object with a `name` and ``parse(image) -> [19, H, W] | None``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context


class Parser(Protocol):
    """A face parser for FFHQ-aligned crops."""

    name: str

    def parse(self, image: np.ndarray) -> np.ndarray | None:
        """Return class probabilities of an RGB image.

        Args:
            image: An aligned crop, uint8 [H, W, 3].

        Returns:
            float32 [19, H, W] in the order of `CLASSES`, summing to 1 over the classes, or None if
            no face is found.
        """
        ...


class NoParser:
    """Find no face in any image, as DHR treats pictures without a detected face."""

    name = "none"

    def parse(self, image: np.ndarray) -> None:
        """Return None."""
        return None


def no_parser(context: Context) -> NoParser:
    """Return the parser that never finds a face (`none`)."""
    return NoParser()
