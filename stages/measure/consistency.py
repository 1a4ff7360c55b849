"""Latent editing consistency (LEC): whether an encoder sees an edit as the edit that was made.

Tov et al., "Designing an Encoder for StyleGAN Image Manipulation" (2021): a code is edited and
rendered, the picture is encoded again, and the edit is undone. What is left of the way back to the
first code is the distance. It is 0 if encoder and generator are inverse to each other on edited
codes, and it also grows with whatever the encoder loses of a picture without any edit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

# The published mean leaves out values beyond these percentiles.
_PERCENTILES = (1, 99)


def edit_consistency(
    codes: Tensor,
    embed: Callable[[Tensor], Tensor],
    render: Callable[[Tensor], Tensor],
    edit: Callable[[Tensor], Tensor],
    undo: Callable[[Tensor], Tensor],
    rows: Sequence[int],
) -> Tensor:
    """Return the distance of each code to the one that comes back from its edit, [B].

    ``|w - undo(embed(render(edit(w))))|``, the Euclidean norm over rows and columns.

    Args:
        codes: Codes of photographs by the embedder, [B, L, 512].
        embed: The embedder, pictures [B, 3, R, R] to codes [B, L, 512].
        render: The generator, codes to pictures.
        edit, undo: The edit of codes and its inverse.
        rows: The rows of codes that count, which should be those that affect a picture.
    """
    returned = undo(embed(render(edit(codes))))
    return (codes - returned)[:, list(rows)].flatten(1).norm(dim=1)


def published_mean(distances: Sequence[float] | np.ndarray) -> float:
    """Return the mean without the smallest and the largest hundredth, as e4e's authors have it.

    Nothing is left out of 100 values or fewer.

    >>> published_mean([5.0]), published_mean([1.0, 2.0, 3.0])
    (5.0, 2.0)
    """
    values = np.sort(np.asarray(distances, np.float64))
    low = np.percentile(values, _PERCENTILES[0], method="lower")
    high = np.percentile(values, _PERCENTILES[1], method="higher")
    return float(values[(values >= low) & (values <= high)].mean())
