"""Read weight files of published networks: tensors and plain values, never code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_Net = TypeVar("_Net", bound=nn.Module)
SHOWN = 4


def read(path: Path) -> dict[str, Any]:
    """Return the dictionary in a `.pt` or `.pth` file, with tensors on the CPU.

    Raises:
        ValueError: The file is damaged, or holds other objects than tensors and plain values, which
            would run code when they are loaded.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # Damaged pickles raise various errors, depending on their first bytes.
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read as weights: {reason}. It is damaged, or holds objects that "
            "would run code; in the second case, save only its tensors with torch.save"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def part(checkpoint: Mapping[str, Any], key: str, path: Path) -> Any:
    """Return `checkpoint[key]`.

    Raises:
        ValueError: There is no such key. The message lists the existing ones.
    """
    if key not in checkpoint:
        raise ValueError(f"{path} has no {key!r}, only: {shortened(sorted(map(str, checkpoint)))}")
    return checkpoint[key]


def fill(net: _Net, weights: Mapping[str, Tensor], path: Path) -> _Net:
    """Load weights as float32 into a network created on the device `meta`; return it for inference.

    Raises:
        ValueError: Weights are missing, unknown or of another shape.
    """
    wanted = net.state_dict()
    wrong = [f"{k} is missing" for k in wanted if k not in weights]
    wrong += [f"{k} is unknown" for k in weights if k not in wanted]
    wrong += [
        f"{k} has shape {list(weights[k].shape)}, not {list(tensor.shape)}"
        for k, tensor in wanted.items()
        if k in weights and weights[k].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"{path} does not fit {type(net).__name__}: {shortened(wrong)}")
    net.load_state_dict(dict(weights), assign=True)
    return net.float().eval().requires_grad_(False)


def shortened(items: Sequence[str]) -> str:
    """Return the first items of a list for a message.

    Example:
        >>> shortened(["a", "b", "c", "d", "e", "f"])
        'a, b, c, d and 2 more'
    """
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return (", ".join(items[:SHOWN]) or "nothing") + more
