"""Edits of channels of generators with filled weights, and a published file of deviations."""

import pickle

import numpy as np
import torch

from dhr_batch.stages.edit.directions import Directions
from dhr_batch.stages.edit.stylespace import PUBLISHED


def no_models(name):
    raise AssertionError(f"asked for {name}")


def fill(net):
    draw = torch.Generator().manual_seed(0)
    for name in net.weight_names():
        weight = net.weight(name)
        offset = 1.0 if name.endswith("modulation.bias") else 0.0
        scale = 0.04 if name.startswith("mapping.") else 1.0
        scale = 0.2 if name.endswith("bias") else scale
        weight.copy_(offset + scale * torch.randn(weight.shape, generator=draw))
    return net


def load(models=no_models, **settings):
    options = Directions.Options.model_validate({"edits": [settings]}).edits[0]
    return options.load(models)


def fitted(generator, **settings):
    edit = load(**settings)
    edit.fit(generator)
    return edit


def published_std(tmp_path, seed=3, protocol=4):
    rng = np.random.default_rng(seed)
    mean, std = ([rng.uniform(0.1, 2, n).astype(np.float32) for n in PUBLISHED] for _ in range(2))
    path = tmp_path / "S_mean_std"
    path.write_bytes(pickle.dumps([mean, std], protocol))
    return path, std
