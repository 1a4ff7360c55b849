"""The largest error that the codec of the deltas may cause, computed without the codec."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dhr_batch.pipeline.tables.codec import Steps
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.record import Record, required


def noisy(record: Record, generator: Generator, steps: Steps) -> Record:
    """The record with the error that the codec promises: uniform, up to half a step either way, on
    every value of the refinement.

    The errors of thousands of values are independent, so what they do to a picture hardly varies
    from draw to draw.
    """
    draw, magnitudes = np.random.default_rng(0), generator.magnitudes()

    def moved(value: np.ndarray, step: float) -> np.ndarray:
        return (value + draw.uniform(-step / 2, step / 2, value.shape)).astype(np.float32)

    delta = {
        name: moved(value, steps.weight * magnitudes[name])
        for name, value in required(record.delta).items()
    }
    feature = moved(required(record.feature), steps.feature * magnitudes["feature"])
    return replace(record, delta=delta, feature=feature)
