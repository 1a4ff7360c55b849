"""Read weight files of published networks: tensors and plain values, never code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from dhr_batch.stages.networks.files import checkpoints

_Net = TypeVar("_Net", bound=nn.Module)
SHOWN = 4


def read(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Return the dictionary in a `.pt` or `.pth` file, with tensors on the CPU.

    Args:
        path: The file. Arguments and other objects beside the weights are inert records.
        mapped: Read tensors from the disk only when they are used, for callers that need a part of
            a large file and copy it.

    Raises:
        ValueError: The file is damaged, or names functions, which weights do not need.
    """
    try:
        loaded = checkpoints.read(path, mapped)
    except checkpoints.CheckpointError as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def part(checkpoint: Mapping[str, Any], key: str, path: Path) -> Any:
    """Return `checkpoint[key]`.

    Raises:
        ValueError: There is no such key. The message lists the existing ones.
    """
    if key not in checkpoint:
        raise ValueError(f"{path} has no {key!r}, only: {first_few(sorted(map(str, checkpoint)))}")
    return checkpoint[key]


def section(checkpoint: Mapping[str, Any], prefix: str, path: Path) -> dict[str, Tensor]:
    """Return the weights of one network of a published checkpoint by their names in it.

    These are the entries of `state_dict` whose names start with `prefix`, which is removed. Parts
    `module` of names, which torch.nn.DataParallel adds, are removed first.

    Raises:
        ValueError: There is no `state_dict`, or no such entry. The message lists what there is.
    """
    state = part(checkpoint, "state_dict", path)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path}: state_dict is not a dictionary of tensors by name")
    names = {re.sub(r"(^|\.)module\.", r"\1", key): key for key in state}
    found = {n.removeprefix(prefix): state[k] for n, k in names.items() if n.startswith(prefix)}
    if not found:
        others = first_few(sorted({name.partition(".")[0] + ".*" for name in names}))
        raise ValueError(f"{path} has no weights {prefix}*, only: {others}")
    return found


def fill(net: _Net, weights: Mapping[str, Tensor], path: Path) -> _Net:
    """Load weights as float32 into a network created on the device `meta`; return it for inference.

    Raises:
        ValueError: Weights are missing, unknown or of another shape.
    """
    wanted = net.state_dict()
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name} is not a tensor but a {type(value).__name__}")
    wrong = [f"{k} is missing" for k in wanted if k not in weights]
    wrong += [f"{k} is unknown" for k in weights if k not in wanted]
    wrong += [
        f"{k} has shape {list(weights[k].shape)}, not {list(tensor.shape)}"
        for k, tensor in wanted.items()
        if k in weights and weights[k].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"{path} does not fit {type(net).__name__}: {first_few(wrong)}")
    net.load_state_dict(dict(weights), assign=True)
    return net.float().eval().requires_grad_(False)


def first_few(items: Sequence[str]) -> str:
    """Return the first items of a list for a message.

    Example:
        >>> first_few(["a", "b", "c", "d", "e", "f"])
        'a, b, c, d and 2 more'
    """
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return (", ".join(items[:SHOWN]) or "nothing") + more
