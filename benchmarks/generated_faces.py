"""Faces of a generator that are embedded and refined as photographs, and whose codes are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from dhr_batch.stages.context import Context
    from dhr_batch.stages.record import Record

TRUNCATION = 0.7


def drawn(context: Context, faces: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield faces of a generator, uint8 [R, R, 3], each with its code, float32 [512].

    Args:
        context: The generator.
        faces: Number of faces.
        seed: Seed of the faces.
    """
    import numpy as np
    import torch

    from dhr_batch.stages.tensors import tensor_to_images

    generator = context.network("generator", context.generator)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(faces):
        z = torch.randn(1, 512, generator=draw).to(context.device)
        with torch.no_grad():
            code = generator.map(z, TRUNCATION)
            image = tensor_to_images(generator.synthesize(generator.broadcast(code)))[0]
        yield image, code[0].cpu().numpy().astype(np.float32)


def refined(
    context: Context, settings: Mapping[str, Any], faces: int, seed: int
) -> Iterator[tuple[Record, np.ndarray]]:
    """Yield records of generated faces after `refine`, each with its code [512].

    Args:
        context: The generator. It gets the refiner.
        settings: Settings of a run.
        faces: Number of faces.
        seed: Seed of the faces.
    """
    from dhr_batch.stages import registry
    from dhr_batch.stages.record import Record

    stages = []
    for family in ("embed", "segment", "refine"):
        member = registry.lookup(family, settings[family]["name"])
        stages.append(member(member.Options(**settings[family])))
        stages[-1].setup(context)
    context.use_refiner(stages[-1])
    for i, (image, code) in enumerate(drawn(context, faces, seed)):
        records = [Record(f"face-{seed}-{i}", "generated", image=image)]
        for stage in stages:
            records = stage.run(records)
        if records[0].failure is not None:
            raise RuntimeError(records[0].failure.message)
        yield records[0], code
