"""The generators that can be chosen by name, which share one interface."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from dhr_batch.stages.networks.generators.mobilestylegan import FFHQ_CHANNELS, MobileStyleGAN
from dhr_batch.stages.networks.generators.openvino_ir import load_mobilestylegan
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.networks.generators.stylegan2_layouts import load

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context


def mobilestylegan_1024(context: Context) -> MobileStyleGAN:
    """Load the published FFHQ generator at 1024 px."""
    return load_mobilestylegan(context.models("mobilestylegan-ffhq")).to(context.device).eval()


def cut(published: MobileStyleGAN) -> MobileStyleGAN:
    """Return the first five blocks of the published generator with a wavelet head for 256 px.

    All shared tensors are copied. The head is new: its modulation starts as that of the layer that
    it replaces (the upsampling of block 5, which scales the same features), its weights are 0.
    """
    net = MobileStyleGAN(FFHQ_CHANNELS[:6], head="haar", feature_block=3, num_ws=published.num_ws)
    for name in net.weight_names():
        source = name.replace("to_img.modulation", "layers.5.up.modulation")
        if not source.startswith("to_img"):
            net.weight(name).copy_(published.weight(source))
    for name in net.noise_names:
        net.noise(name).copy_(published.noise(name))
    net.w_mean.copy_(published.w_mean)
    return net


def distilled_tensors(net: MobileStyleGAN) -> dict[str, Tensor]:
    """Return the tensors in which the 256 px generator differs from the published one, by name.

    These are the last block with its noise, and the head. They are not copied.
    """
    last = f"layers.{net.blocks - 1}"
    names = [*net.weight_names(f"{last}."), *net.weight_names("to_img.")]
    tensors = {name: net.weight(name) for name in names}
    return tensors | {f"noise.{last}.{c}": net.noise(f"{last}.{c}") for c in ("conv1", "conv2")}


@torch.no_grad()
def load_distilled(net: MobileStyleGAN, file: Path) -> MobileStyleGAN:
    """Fill a generator from `cut` with the distilled tensors of a file, and return it.

    Raises:
        ValueError: Names or shapes in the file are not those of `distilled_tensors`.
    """
    stored, wanted = load_file(file), distilled_tensors(net)
    if stored.keys() != wanted.keys():
        odd = ", ".join(sorted(stored.keys() ^ wanted.keys()))
        raise ValueError(f"{file} is not a distilled 256 px generator: missing or unknown {odd}")
    for name, tensor in wanted.items():
        if stored[name].shape != tensor.shape:
            raise ValueError(
                f"{file}: {name} has shape {list(stored[name].shape)}, not {list(tensor.shape)}"
            )
        tensor.copy_(stored[name])
    return net


def mobilestylegan_256(context: Context) -> MobileStyleGAN:
    """Load the FFHQ generator that `dhr_batch.fitting.distill` distilled to 256 px.

    It takes the published W+ codes. Row 15, which has no effect at 1024 px, modulates the head.
    """
    net = cut(load_mobilestylegan(context.models("mobilestylegan-ffhq")))
    net = load_distilled(net, context.models("mobilestylegan-256"))
    return net.to(context.device).eval()


def stylegan2_ffhq_1024(context: Context) -> StyleGAN2:
    """Load StyleGAN2-FFHQ at 1024 px, which users convert from the published checkpoint."""
    return from_file(context.models("stylegan2-ffhq-1024"), context)


def stylegan2_test_bed(context: Context) -> StyleGAN2:
    """Load the small StyleGAN2 that `dhr_batch.fitting.test_bed` distils at 128 px.

    It has the W space of the embedded generators, and serves tests of the architecture.
    """
    return from_file(context.models("stylegan2-test-bed"), context)


def from_file(file: Path, context: Context) -> StyleGAN2:
    """Load a StyleGAN2 of any size from a file that `dhr-batch models convert` wrote."""
    return load(file).to(context.device)
