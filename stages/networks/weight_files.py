"""Reading the weight files of published networks: tensors and plain values, never code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_Net = TypeVar("_Net", bound=nn.Module)
SHOWN = 4


def read(path: Path) -> dict[str, Any]:
    """The dictionary that a `.pt` or `.pth` file holds, on the CPU.

    Raises ValueError for a damaged file and for one that holds objects other than tensors and
    plain values: these would run code when loaded.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # Which error a damaged pickle raises depends on its first bytes.
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read as weights: {reason}; it is damaged, or holds objects that "
            "would run code; save its tensors alone with torch.save"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def part(checkpoint: Mapping[str, Any], key: str, path: Path) -> Any:
    """`checkpoint[key]`. Raises ValueError, listing the keys that are there."""
    if key not in checkpoint:
        raise ValueError(f"{path} has no {key!r}, only: {_some(sorted(map(str, checkpoint)))}")
    return checkpoint[key]


def fill(net: _Net, weights: Mapping[str, Tensor], path: Path) -> _Net:
    """Give a network, made on the device `meta`, its weights as float32; returns it for inference.

    Raises ValueError naming keys that are missing, unknown or of another shape.
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
        raise ValueError(f"{path} does not fit {type(net).__name__}: {_some(wrong)}")
    net.load_state_dict(dict(weights), assign=True)
    return net.float().eval().requires_grad_(False)


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return (", ".join(items[:SHOWN]) or "nothing") + more
