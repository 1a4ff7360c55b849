"""A small benchmark with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dhr_batch.pipeline.bench.matrix import Matrix, parse_matrix
from dhr_batch.pipeline.bench.run import Machine

MACHINE = Machine(gpus=0, progress="none")
TINY: dict[str, Any] = {
    "generator": "tiny",
    "shard_size": 2,
    "workers": 1,
    "segment": {"name": "dhr", "parser": "none", "perceptual": "tiny"},
    # All rows, so that the methods have effects in common.
    "edit": {"name": "directions", "rows": "all", "follow": "none"},
    "measure": {
        "name": "standard",
        "perceptual": ["tiny"],
        "identity": "none",
        "landmarks": "none",
        "scores": ["dhr_batch.tests.pipeline.scorers:Darkness"],
        "features": ["tiny"],
    },
}
# After so small steps, renders are little darker than the sources, so that the effects of the edits
# can be compared.
EMBED = {
    "name": "w+",
    "steps": 2,
    "perceptual": "tiny",
    "rates": "absolute",
    "rate": 0.07,
    "w_rate": 0.1,
    "w_share": 0.25,
    "pull": 0.05,
    "whitening": 0,
    "betas": [0.9, 0.999],
}
REFINE = {
    "name": "dhr",
    "steps": 2,
    "perceptual": "tiny",
    "rates": "absolute",
    "weight_rate": 5e-4,
    "feature_rate": 0.06,
    "smallest_layer": 128,
}


def tiny(dataset: Path | str, **more: Any) -> Matrix:
    content: dict[str, Any] = {
        "about": "Random weights.",
        "datasets": [str(dataset)],
        "settings": TINY,
        "embedders": {"w+": {"settings": {"embed": EMBED}}},
        "refiners": {
            "dhr": {"settings": {"refine": REFINE}},
            "no_mask": {"settings": {"refine": REFINE, "segment": {"name": "dhr", "error": False}}},
            "fails": {"settings": {"refine": "dhr_batch.tests.pipeline.scorers:FailsOnDark"}},
        },
        "edits": [{"direction": "smile", "strengths": [-2, 2], "label": "darkness"}],
        "compare_to": "dhr",
    }
    return parse_matrix(content | more, "test")
