"""The base class of embedders: find the latent code of an aligned photograph."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dhr_batch.stages.base import Stage
from dhr_batch.stages.context import Context
from dhr_batch.stages.device import mixed_precision
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.networks.transfers import to_host
from dhr_batch.stages.record import Record, required
from dhr_batch.stages.tensors import images_to_tensor, tensor_to_images


class Embedder(Stage):
    """Base class of the family. A member implements `embed`; this class handles the records."""

    family = "embed"
    needs = frozenset({"image"})
    gives = frozenset({"latent", "inverted"})

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.generator: Generator = context.network("generator", context.generator)

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Return the latent codes of a batch of images.

        Args:
            images: Aligned crops, [B, 3, R, R] in [-1, 1].

        Returns:
            W+ codes [B, L, 512]. The code of an image must not depend on the other images.
        """

    def process(self, records: Sequence[Record]) -> list[Record]:
        images = images_to_tensor([required(r.image) for r in records], self.context.device)
        with mixed_precision(self.context.device, self.context.precision):
            ws = self.embed(images)
        with torch.no_grad():
            renders = tensor_to_images(self.generator.synthesize(ws))
        (codes,) = to_host([ws.float()])
        if not np.isfinite(codes).all():
            raise ArithmeticError("the embedding diverged; a smaller rate may help")
        return [
            replace(record, latent=code, inverted=render)
            for record, code, render in zip(records, codes, renders, strict=True)
        ]
