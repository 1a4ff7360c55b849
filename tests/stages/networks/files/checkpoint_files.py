"""Checkpoints of several layouts, and objects whose unpickling runs code, for tests."""

from __future__ import annotations

import importlib
import os
import pickle
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dhr_batch.stages.networks.generators import stylegan2_layouts as layouts
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2

WIDTHS = (8, 6, 5, 4)


def random_net() -> StyleGAN2:
    net = StyleGAN2(WIDTHS, mapping_layers=2)
    draw = torch.Generator().manual_seed(0)
    for tensor in layouts.named_tensors(net).values():
        tensor.data.copy_(torch.randn(tensor.shape, generator=draw))
    return net


def filter_taps() -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return taps[:, None] * taps / 64


def rosinality_file(file: Path, net: StyleGAN2, legacy: bool = False) -> Path:
    """A checkpoint of rosinality's layout that holds `net`."""
    state: dict[str, Tensor] = {"convs.0.conv.blur.kernel": 4 * filter_taps()}
    for name, value in layouts.named_tensors(net).items():
        layer, _, last = name.rpartition(".")
        if name.startswith("mapping."):
            key = f"style.{int(name.split('.')[1]) + 1}.{last}"
            value = value / 0.01 * (512**0.5 if last == "weight" else 1)
        elif name == "input":
            key, value = "input.input", value[None]
        elif name.startswith("noise."):
            index = 0 if last == "conv1" else int(last) + 1
            key, value = f"noises.noise_{index}", value[None, None]
        elif last == "noise_strength":
            key = f"{layer}.noise.weight"
        elif layer.endswith("modulation"):
            key = f"{layer.removesuffix('.modulation')}.conv.modulation.{last}"
        elif last == "weight":
            key = f"{layer}.conv.weight"
            value = value[None] if value.ndim == 4 else value[None, :, :, None, None]
        elif "rgb" in layer:
            key, value = name, value[None, :, None, None]
        else:
            key = f"{layer}.activate.bias"
        if name != "w_mean":
            state[key] = value.clone()
    content = {"g_ema": state, "latent_avg": net.w_mean.clone()}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file


class Persistent:
    """Pickles as NVIDIA's persistent classes do: source code, class name and state."""

    reconstruct: Callable[..., Any]
    source = ""

    def __init__(self, state: dict[str, Any]) -> None:
        self.fields = state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": self.source}
        return type(self).reconstruct, ({**meta, "class_name": "Net", "state": self.fields},), None


def nvidia_state(net: StyleGAN2) -> dict[str, Tensor]:
    """The state dict of `net` under NVIDIA's names."""
    state: dict[str, Tensor] = {"synthesis.b8.resample_filter": filter_taps()}
    for name, value in layouts.named_tensors(net).items():
        last = name.rpartition(".")[2]
        if name.startswith("mapping."):
            value = value / 0.01 * (512**0.5 if last == "weight" else 1)
            key = f"mapping.fc{name.split('.')[1]}.{last}"
        elif name in ("input", "w_mean"):
            key = {"input": "synthesis.b4.const", "w_mean": "mapping.w_avg"}[name]
        else:
            layer = name.removeprefix("noise.").split(".")
            rest = ".".join(layer[1:] if layer[0] in ("conv1", "to_rgb1") else layer[2:])
            if layer[0] == "conv1":
                place = "b4.conv1"
            elif layer[0] == "to_rgb1":
                place = "b4.torgb"
            elif layer[0] == "to_rgbs":
                place = f"b{8 << int(layer[1])}.torgb"
            else:
                place = f"b{8 << int(layer[1]) // 2}.conv{int(layer[1]) % 2}"
            rest = "noise_const" if name.startswith("noise.") else rest
            key = f"synthesis.{place}.{rest.replace('modulation', 'affine')}"
            if rest == "noise_strength":
                value = value[0]
            elif place.endswith("torgb") and rest == "weight":
                value = value[:, :, None, None]
        state[key] = value.clone()
    return state


def persistent(state: dict[str, Tensor], easy: type) -> Persistent:
    """A tree of persistent modules that holds the state dict."""
    own = {k: v for k, v in state.items() if "." not in k}
    buffers = [k for k in own if k in ("w_avg", "noise_const", "resample_filter")]
    children = dict.fromkeys(k.partition(".")[0] for k in state if "." in k)
    return Persistent(
        {
            "training": False,
            "_parameters": OrderedDict(
                (k, torch.nn.Parameter(v)) for k, v in own.items() if k not in buffers
            ),
            "_buffers": OrderedDict((k, own[k]) for k in buffers) | {"none": None},
            "_non_persistent_buffers_set": set(),
            "_modules": OrderedDict(
                (
                    c,
                    persistent(
                        {k.partition(".")[2]: v for k, v in state.items() if k.startswith(f"{c}.")},
                        easy,
                    ),
                )
                for c in children
            ),
            "_init_kwargs": easy(w_dim=512),
            "weight_gain": np.float64(0.5),
        }
    )


def nvidia_file(file: Path, net: StyleGAN2, util: types.ModuleType, protocol: int) -> Path:
    """A pickle as NVIDIA publishes them that holds `net`."""
    g_ema = persistent(nvidia_state(net), util.EasyDict)
    content = {"G_ema": g_ema, "augment_pipe": None, "training_set_kwargs": util.EasyDict(path="x")}
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    return file


def assert_same(got: StyleGAN2, want: StyleGAN2) -> None:
    stored = layouts.named_tensors(got)
    for name, tensor in layouts.named_tensors(want).items():
        torch.testing.assert_close(stored[name], tensor, msg=lambda text, n=name: f"{n}: {text}")


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(canary: Path) -> dict[str, tuple[Any, list[str]]]:
    """Objects whose unpickling creates the canary, and names that give them away."""
    touch = f"touch {canary}"
    return {
        "os.system": (Call(os.system, touch), ["posix.system", "nt.system"]),
        "importlib": (Call(importlib.import_module, "make_canary"), ["importlib.import_module"]),
        "eval": (Call(eval, f"open({str(canary)!r}, 'w')"), ["eval"]),
        "Path.touch": (Call(Path.touch, canary), ["getattr", "pathlib.Path.touch"]),
    }
