"""Embedding by trained encoders: one forward pass, or several that correct the code."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhr_batch.stages.context import Context
from dhr_batch.stages.embed.base import Embedder
from dhr_batch.stages.networks.encoders import psp as encoders
from dhr_batch.stages.networks.encoders import style_transformer
from dhr_batch.stages.networks.generators.generator import STYLE_WIDTH, Generator
from dhr_batch.stages.options.embed import (
    EncodeE4EOptions,
    EncodePSPOptions,
    EncodeStyleTransformerOptions,
    EncodeWOptions,
    ReStyleE4EOptions,
    ReStylePSPOptions,
)
from dhr_batch.stages.registry import InvalidInput
from dhr_batch.stages.tensors import downsample


def row_table(generator: Generator, rows: int) -> list[int]:
    """Return for each row of the generator's codes the encoder's row that it takes, -1 for none.

    The assignment is that of edit directions: `Generator.expand_direction` with numbered rows.

    Args:
        rows: Number of rows that the encoder gives.

    Raises:
        InvalidInput: The generator does not define where rows of such a code belong.
    """
    numbered = torch.arange(1.0, rows + 1).unsqueeze(1).expand(-1, STYLE_WIDTH)
    try:
        placed = generator.expand_direction(numbered)
    except ValueError as error:
        raise InvalidInput(
            f"codes of {rows} rows do not fit this generator, whose codes have {generator.num_ws}",
            "choose another encoder or generator",
        ) from error
    return [int(value) - 1 for value in placed[:, 0].tolist()]


def encoder_input(images: Tensor) -> Tensor:
    """Resize images [B, 3, R, R] to [B, 3, 256, 256]: down by area, up bilinearly."""
    small = downsample(images, encoders.SIZE)
    if small.shape[-1] == encoders.SIZE:
        return small
    return F.interpolate(small, size=(encoders.SIZE, encoders.SIZE), mode="bilinear")


class _Encoder(Embedder):
    shared: ClassVar[bool]

    def models(self, aligned: bool) -> set[str]:
        return {self.options.model}

    def load(self, path: Path) -> tuple[nn.Module, Tensor]:
        """Return the encoder in a file and the mean code [n, 512] that its rows are relative to."""
        return encoders.load(path, shared=self.shared)

    def setup(self, context: Context) -> None:
        super().setup(context)
        net, mean = self.load(context.models(self.options.model))
        self.encoder, self.mean = net.to(context.device), mean.to(context.device)
        self.table = torch.tensor(row_table(self.generator, len(mean)), device=context.device)

    def codes(self, rows: Tensor) -> Tensor:
        """Return W+ codes [B, L, 512] of the generator from rows [B, n, 512] of the encoder.

        Rows of the generator without a counterpart in the encoder are the mean of the other rows.
        """
        placed = rows[:, self.table.clamp_min(0)]
        from_encoder = (self.table >= 0).unsqueeze(1)
        return torch.where(from_encoder, placed, placed[:, self.table >= 0].mean(1, keepdim=True))


class _OnePass(_Encoder):
    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        return self.codes(self.encoder(encoder_input(images)) + self.mean)


class EncodeE4E(_OnePass):
    """`e4e`: codes close to W, for editing (Tov et al., 2021). LSAP uses the same file layout."""

    shared = True

    Options = EncodeE4EOptions


class EncodePSP(_OnePass):
    """`psp`: independent rows, for a closer reconstruction (Richardson et al., 2021)."""

    shared = False

    Options = EncodePSPOptions


class EncodeStyleTransformer(_OnePass):
    """`style-transformer`: learned queries that attend to the photograph (Hu et al., 2022)."""

    Options = EncodeStyleTransformerOptions

    def load(self, path: Path) -> tuple[nn.Module, Tensor]:
        return style_transformer.load(path)


class _ReStyle(_Encoder):
    """Encoder that sees the image beside the current render and corrects the code repeatedly.

    ``w <- w + E(x, G(w))``, starting from the mean code.
    """

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        target = encoder_input(images)
        rows = self.mean.expand(len(images), -1, -1)
        for _ in self.counted(range(self.options.steps)):
            render = encoder_input(self.generator.synthesize(self.codes(rows)))
            rows = rows + self.encoder(torch.cat([target, render], 1))
        return self.codes(rows)


class ReStyleE4E(_ReStyle):
    """`restyle-e4e`: e4e with step-by-step corrections (Alaluf et al., 2021)."""

    shared = True

    Options = ReStyleE4EOptions


class ReStylePSP(_ReStyle):
    """`restyle-psp`: pSp with step-by-step corrections (Alaluf et al., 2021)."""

    shared = False

    Options = ReStylePSPOptions


class EncodeW(Embedder):
    """`w-encoder`: one code for all rows, for HyperStyle's refinement (Alaluf et al., 2022).

    The code is the encoder's output plus a mean latent. In the published combination this is the
    one in the file of HyperStyle and not the one in the encoder's own file.
    """

    Options = EncodeWOptions

    def models(self, aligned: bool) -> set[str]:
        return {self.options.model, self.options.mean_model}

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.encoder = encoders.load_w(context.models(self.options.model)).to(context.device)
        mean = encoders.latent_average(context.models(self.options.mean_model))
        self.mean = mean.to(context.device)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        return self.generator.broadcast(self.encoder(encoder_input(images)) + self.mean)
