"""Convert published state dicts of StyleGAN2 to the names of `StyleGAN2`.

There are two layouts: `rosinality`, the `g_ema` of stylegan2-pytorch and projects based on it, and
`nvidia`, the `G_ema` of stylegan2-ada-pytorch, without its clamping of half-precision layers.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dhr_batch.stages.networks.files import checkpoints
from dhr_batch.stages.networks.files.weight_files import first_few
from dhr_batch.stages.networks.generators.stylegan2 import RESOLUTIONS, TAPS, StyleGAN2

# Learning rate of the mapping network relative to other layers, part of the scale of its weights.
MAPPING_RATE = 0.01
FORMAT = "dhr-batch stylegan2"
# Missing noise maps are drawn from this seed. They are no weights: the code that writes such files
# draws other ones each time.
NOISE_SEED = 0

State = Mapping[str, Tensor]


class LayoutError(ValueError):
    """A state dict is not a StyleGAN2 generator of a known layout."""

    exit_code = 2


def _rosinality_name(key: str) -> str:
    if match := re.fullmatch(r"style\.(\d{1,3})\.(weight|bias)", key):
        return f"mapping.{int(match[1]) - 1}.{match[2]}"
    if match := re.fullmatch(r"noises\.noise_(\d{1,3})", key):
        return "noise.conv1" if match[1] == "0" else f"noise.convs.{int(match[1]) - 1}"
    if key == "input.input":
        return "input"
    key = key.replace(".activate.bias", ".bias").replace(".noise.weight", ".noise_strength")
    return re.sub(r"\.conv\.(weight|modulation)", r".\1", key)


def _nvidia_name(key: str) -> str:
    if key == "mapping.w_avg":
        return "w_mean"
    if match := re.fullmatch(r"mapping\.fc(\d{1,3})\.(weight|bias)", key):
        return f"mapping.{match[1]}.{match[2]}"
    if key == "synthesis.b4.const":
        return "input"
    match = re.fullmatch(r"synthesis\.b(\d{1,4})\.(conv0|conv1|torgb)\.(.+)", key)
    if not match or int(match[1]) not in (4, 8, 16, *RESOLUTIONS):
        return key
    block, rest = int(math.log2(int(match[1]))) - 3, match[3].replace("affine.", "modulation.")
    if match[2] == "torgb":
        layer = "to_rgb1" if block < 0 else f"to_rgbs.{block}"
    else:
        layer = "conv1" if block < 0 else f"convs.{2 * block + int(match[2][-1])}"
    return f"noise.{layer}" if rest == "noise_const" else f"{layer}.{rest}"


def rosinality(state: State, latent_avg: Tensor | None = None) -> dict[str, Tensor]:
    """Return tensors of `StyleGAN2` from a `g_ema` and, if given, its mean latent.

    A mean latent with a row for each row of codes, as encoders store it, is taken if all are alike.
    """
    tensors = _renamed(state, _rosinality_name, ".kernel")
    if latent_avg is not None:
        _check_tensor("latent_avg", latent_avg)
        rows = latent_avg.reshape(-1, latent_avg.shape[-1] if latent_avg.ndim else 1)
        if len(rows) and torch.equal(rows, rows[:1].expand_as(rows)):
            tensors["w_mean"] = rows[0].to("cpu", torch.float32)
    return tensors


def _without_prefix(state: State) -> State:
    """Return a state dict without the prefix that torch.nn.DataParallel gives to all names."""
    prefix = "module."
    if not state or not all(isinstance(key, str) and key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


def nvidia(state: State) -> dict[str, Tensor]:
    """Return tensors of `StyleGAN2` from the state dict of a `G_ema`."""
    return _renamed(state, _nvidia_name, "resample_filter")


def _renamed(state: State, rename: Callable[[str], str], filters: str) -> dict[str, Tensor]:
    tensors = {}
    for key, value in state.items():
        _check_tensor(key, value)
        value = value.detach().to("cpu", torch.float32)
        if key.endswith(filters):
            _check_filter(key, value)
            continue
        name = rename(key)
        if name.startswith("mapping."):
            fan_in = value.shape[1] if value.ndim == 2 else 1
            value = value * (MAPPING_RATE / math.sqrt(max(fan_in, 1)))
        if name in tensors:
            raise LayoutError(f"{key} has the name of another tensor")
        tensors[name] = value
    return tensors


def _check_tensor(key: object, value: object) -> None:
    if not isinstance(key, str):
        raise LayoutError(f"the name of a tensor is {key!r}, which is no text")
    if not isinstance(value, Tensor):
        kind = value.named if isinstance(value, checkpoints.Inert) else type(value).__name__
        raise LayoutError(f"{key} is not a tensor but a {kind}")
    if not value.is_floating_point():
        raise LayoutError(f"{key} holds numbers of {value.dtype}, which are no weights")


def _check_filter(key: str, value: Tensor) -> None:
    taps = torch.tensor(TAPS)
    wanted = taps[:, None] * taps
    if value.shape != wanted.shape or not torch.allclose(value / value.sum(), wanted / 4):
        raise LayoutError(f"{key} is not the filter of StyleGAN2, [1, 3, 3, 1]")


def build(tensors: State, feature_layer: int | None = None, make_noise: bool = False) -> StyleGAN2:
    """Return the generator with these tensors. Its sizes follow from their shapes.

    Without `w_mean`, the mean latent is computed.

    Args:
        tensors: The tensors by their names in `StyleGAN2`.
        feature_layer: See `StyleGAN2`.
        make_noise: Whether noise maps that are missing are drawn (`StyleGAN2.made`).

    Raises:
        LayoutError: Tensors are missing, unknown or of unexpected shapes.
    """
    try:
        widths = [tensors["conv1.bias"].numel()]
        while (name := f"convs.{2 * len(widths) - 2}.bias") in tensors:
            widths.append(tensors[name].numel())
        depth = sum(1 for name in tensors if re.fullmatch(r"mapping\.\d+\.bias", name))
        if 2 ** (len(widths) + 1) > RESOLUTIONS[-1]:
            raise ValueError(f"it has images of more than {RESOLUTIONS[-1]} px")
        # Shapes are compared before memory is taken.
        with torch.device("meta"):
            made = _check(StyleGAN2(widths, feature_layer, depth), tensors, make_noise)
    except KeyError as error:
        raise LayoutError(f"this is not a StyleGAN2 generator: it has no {error}") from error
    except ValueError as error:
        if isinstance(error, LayoutError):
            raise
        raise LayoutError(f"this is not a StyleGAN2 generator: {error}") from error
    net = StyleGAN2(widths, feature_layer, depth)
    net.made = made
    _fill(net, tensors)
    if "w_mean" not in tensors:
        net.set_w_mean()
    return net.eval()


def named_tensors(net: StyleGAN2) -> dict[str, Tensor]:
    """Return all tensors of a generator: weights, `noise.<layer>` and `w_mean`, not copied."""
    tensors = {name: net.weight(name) for name in net.weight_names()}
    tensors |= {f"noise.{name}": net.noise(name) for name in net.noise_names}
    return tensors | {"w_mean": net.w_mean}


def _check(net: StyleGAN2, tensors: State, make_noise: bool) -> tuple[str, ...]:
    """Check names and shapes of tensors. Returns the names of those that are to be made."""
    wanted = named_tensors(net)
    noise = {name for name in wanted.keys() - tensors.keys() if name.startswith("noise.")}
    made = {"w_mean"} - tensors.keys() | (noise if make_noise else set())
    if odd := (tensors.keys() ^ wanted.keys()) - made:
        raise LayoutError(
            f"this is not a StyleGAN2 generator: missing or unknown {first_few(sorted(odd))}"
        )
    for name in sorted(wanted.keys() & tensors.keys()):
        value, place = tensors[name], wanted[name]
        # The layouts differ in axes of length one.
        if _squeezed(value) != _squeezed(place):
            raise LayoutError(f"{name} has shape {list(value.shape)}, not {list(place.shape)}")
    return tuple(sorted(made))


@torch.no_grad()
def _fill(net: StyleGAN2, tensors: State) -> None:
    draw = np.random.default_rng(NOISE_SEED)
    for name, place in named_tensors(net).items():
        if name in tensors:
            place.copy_(tensors[name].reshape(place.shape))
        elif name.startswith("noise."):
            place.copy_(torch.from_numpy(draw.standard_normal(place.shape, np.float32)))


def _squeezed(tensor: Tensor) -> Sequence[int]:
    return [n for n in tensor.shape if n != 1]


def read_checkpoint(file: Path) -> tuple[StyleGAN2, str]:
    """Return the generator in a published checkpoint and the name of its layout.

    No code in the file is run.

    Raises:
        CheckpointError: The file is damaged or refused.
        LayoutError: Its content is not a StyleGAN2 generator.
    """
    content = checkpoints.read(file)
    whole = isinstance(content, checkpoints.Inert)
    found: Mapping[Any, Any] = {"g_ema": content} if whole else checkpoints.fields(content)
    network = found.get("g_ema", found.get("G_ema"))
    try:
        if isinstance(network, checkpoints.Inert):
            network = checkpoints.state_dict(network)
        if isinstance(network, dict):
            network = _without_prefix(network)
            if any(str(key).startswith("synthesis.input.") for key in network):
                raise LayoutError("it is a StyleGAN3 generator; only StyleGAN2 is supported")
            if any(str(key).startswith("synthesis.") for key in network):
                return build(nvidia(network), make_noise=True), "nvidia"
            tensors = rosinality(network, found.get("latent_avg"))
            return build(tensors, make_noise=True), "rosinality"
    except LayoutError as error:
        raise LayoutError(f"{file}: {error}") from error
    except checkpoints.CheckpointError as error:
        raise LayoutError(
            f"{file}: {error}; where the code of this object ({network.named}) is installed, save "
            "its weights: torch.save({'g_ema': network.state_dict()}, FILE)"
        ) from error
    keys = first_few(sorted(map(str, found))) if found else type(content).__name__
    raise LayoutError(
        f"{file} does not hold a StyleGAN2 generator: expected a dict with g_ema (rosinality) or "
        f"G_ema (NVIDIA), found {keys}"
    )


def convert(file: Path, out: Path) -> dict[str, str]:
    """Write the generator of a published checkpoint to `out`, either completely or not at all.

    Returns:
        The metadata of `out`: layout, resolution, file name and sha256 of the source, and in `made`
        the names of tensors that the source lacks and that were made.

    Raises:
        CheckpointError: The file is damaged or refused.
        LayoutError: Its content is not a StyleGAN2 generator.
        OSError: A file cannot be read or written.
    """
    net, layout = read_checkpoint(file)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    about = {"layout": layout, "source": file.name, "source_sha256": digest}
    if net.made:
        about["made"] = ", ".join(net.made)
    try:
        about = save(net, temporary, about)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return about


def save(net: StyleGAN2, file: Path, about: Mapping[str, str]) -> dict[str, str]:
    """Write a generator as safetensors, with `about` in the metadata. Returns all metadata.

    A mean latent that was computed is left out, and computed again by `load`: its last bits depend
    on the processor, and runs are bound to the checksum of the file.
    """
    metadata = {"format": FORMAT, "resolution": str(net.resolution), **about}
    tensors = {name: tensor.contiguous() for name, tensor in named_tensors(net).items()}
    if net.w_mean_computed:
        del tensors["w_mean"]
    save_file(tensors, file, metadata)
    return metadata


def load(file: Path, feature_layer: int | None = None) -> StyleGAN2:
    """Load the generator of a file that `save` wrote.

    Raises:
        LayoutError: It is another file.
    """
    try:
        with safe_open(file, "pt") as stored:
            if (stored.metadata() or {}).get("format") != FORMAT:
                raise LayoutError("it was not written by `dhr-batch models convert`")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return build(tensors, feature_layer)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise LayoutError(
            f"{file} cannot be used as a generator: {error}. Create it from a published checkpoint "
            f"with: dhr-batch models convert CHECKPOINT --out {file}"
        ) from error
