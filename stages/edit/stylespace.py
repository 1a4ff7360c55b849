"""Edits of single channels in StyleSpace, the space of the styles of all layers.

Wu et al., "StyleSpace Analysis: Disentangled Controls for StyleGAN Image Generation" (arXiv
2011.12799). A style is what the modulation of a layer makes of its row of the code, a number per
input channel. Offsets are added to the styles of the refined modulation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dhr_batch.stages.edit.base import Edit, Styles
from dhr_batch.stages.edit.direction_files import DirectionError, digest
from dhr_batch.stages.edit.syntax import Channel
from dhr_batch.stages.networks.files import checkpoints
from dhr_batch.stages.networks.generators.generator import Generator

# Widths of the styles of StyleGAN2 at 1024 px in the published order: the first convolution and its
# image layer, then two convolutions and the image layer of each size. Image layers are 1, 4, 7, ...
PUBLISHED = (512,) * 15 + (256,) * 3 + (128,) * 3 + (64,) * 3 + (32,) * 2
# Codes from which standard deviations of channels are computed. Their error is about 1 %.
SAMPLES, SEED = 4096, 0


class StyleOffsets(Edit):
    """An edit that adds multiples of fixed offsets to styles; codes stay as they are.

    Attributes:
        offsets: The offset of strength 1, `LAYER.style` -> [1, C]. `fit` sets it.
    """

    offsets: dict[str, Tensor]

    def apply(self, ws: Tensor, strength: float) -> tuple[Tensor, Styles]:
        return ws, {name: strength * offset for name, offset in self.offsets.items()}


class Channels(StyleOffsets):
    """Offsets of chosen channels by their standard deviations.

    Args:
        channels: The channels.
        std: Standard deviations of the channels of each layer in the published order, or None to
            compute them.
    """

    def __init__(self, channels: Sequence[Channel], std: Sequence[np.ndarray] | None) -> None:
        self.channels, self.std = channels, std
        self.name = "s" + "_".join(f"{c.layer}_{c.number}" for c in channels)
        source = f"{SAMPLES} {SEED}" if std is None else digest(np.concatenate(std))
        text = " ".join(["stylespace", *map(str, channels), source])
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()

    def fit(self, generator: Generator) -> None:
        device = generator.w_mean.device
        widths = style_widths(generator)
        layers = [_layer(generator, channel) for channel in self.channels]
        if self.std is not None:
            check_published(generator, "the file of standard deviations")
            std = dict(zip(widths, self.std, strict=True))
        else:
            std = deviations(generator, layers)
        self.offsets = {}
        for layer, channel in zip(layers, self.channels, strict=True):
            if channel.number >= widths[layer]:
                raise DirectionError(
                    f"{channel}: {layer} has {widths[layer]} channels",
                    f"choose one from 0 to {widths[layer] - 1}",
                )
            unit = float(std[layer][channel.number])
            if not unit > 0:
                raise DirectionError(
                    f"{channel}: the style of this channel does not vary", "choose another channel"
                )
            offset = self.offsets.setdefault(
                f"{layer}.style", torch.zeros(1, widths[layer], device=device)
            )
            offset[0, channel.number] += channel.sign * unit


def style_widths(generator: Generator) -> dict[str, int]:
    """Return the number of styles of each layer that has any, in the order of synthesis.

    For StyleGAN2 this is the published order.
    """
    suffix = ".modulation.bias"
    names = [name for name in generator.weight_names() if name.endswith(suffix)]
    return {name.removesuffix(suffix): generator.weight(name).numel() for name in names}


def check_published(generator: Generator, what: str) -> None:
    """Check that a generator has the styles of StyleGAN2 at 1024 px.

    Raises:
        DirectionError: It has others. The message names `what` needs them.
    """
    if tuple(style_widths(generator).values()) != PUBLISHED:
        raise DirectionError(
            f"{what} is for the channels of StyleGAN2 at 1024 px, as published for FFHQ, and not "
            f"for those of this {type(generator).__name__} at {generator.resolution} px",
            "use generator=stylegan2-ffhq-1024, or an edit by direction or by names of layers",
        )


def _layer(generator: Generator, channel: Channel) -> str:
    layers = list(style_widths(generator))
    if channel.layer.isdigit():
        number = int(channel.layer)
        check_published(generator, f"the number of a layer ({channel})")
        if number >= len(layers):
            raise DirectionError(
                f"{channel}: there is no layer {number}",
                f"choose one from 0 to {len(layers) - 1}",
            )
        return layers[number]
    if channel.layer not in layers:
        raise DirectionError(
            f"{channel}: there is no layer {channel.layer!r}",
            f"choose from: {', '.join(layers)}",
        )
    return channel.layer


@torch.no_grad()
def deviations(generator: Generator, layers: Collection[str]) -> dict[str, np.ndarray]:
    """Return the standard deviations of the styles of layers over seeded codes, layer -> [C]."""
    z = torch.randn(SAMPLES, 512, generator=torch.Generator().manual_seed(SEED))
    w = generator.map(z.to(generator.w_mean.device, generator.w_mean.dtype))
    styles = generator.styles(generator.broadcast(w), layers)
    return {layer: value.double().std(0).cpu().numpy() for layer, value in styles.items()}


def read_std(path: Path) -> list[np.ndarray]:
    """Read the standard deviations in a file `S_mean_std` of StyleCLIP: [C] for each of 26 layers.

    The file is a pickle of two lists, means and standard deviations. No code in it is run.

    Raises:
        DirectionError: The file is missing, damaged or another one.
    """
    try:
        content = checkpoints.read(path)
        if not isinstance(content, (list, tuple)) or len(content) != 2:
            raise ValueError("expected two lists, of means and standard deviations")
        std = [checkpoints.array(value).astype(np.float32).reshape(-1) for value in content[1]]
    except (OSError, TypeError, ValueError) as error:
        raise DirectionError(
            f"{path} is not a file of standard deviations: {error}", "give S_mean_std of StyleCLIP"
        ) from error
    if tuple(map(len, std)) != PUBLISHED or not all(np.isfinite(s).all() for s in std):
        raise DirectionError(
            f"{path} does not have the {len(PUBLISHED)} layers of StyleGAN2 at 1024 px",
            "give S_mean_std of StyleCLIP for FFHQ",
        )
    return std
