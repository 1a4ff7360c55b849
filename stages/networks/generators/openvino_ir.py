"""Read the constants of OpenVINO IR v10 models, an XML graph and a binary file of numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN


def read_constants(xml: Path, binary: Path) -> list[tuple[str, np.ndarray]]:
    """Return all float32 constants as (name, array), in the order of the graph.

    Raises:
        ValueError: A constant lies outside the binary file.
    """
    data = binary.read_bytes()
    constants = []
    for layer in ElementTree.parse(xml).getroot().iterfind("layers/layer"):
        field = layer.find("data")
        if layer.get("type") != "Const" or field is None or field.get("element_type") != "f32":
            continue
        offset, size = int(field.get("offset", 0)), int(field.get("size", 0))
        if offset + size > len(data):
            raise ValueError(f"{binary} is truncated: it ends before {layer.get('name')!r}")
        shape = [int(n) for n in (field.get("shape") or "").split(",") if n.strip()]
        array = np.frombuffer(data, "<f4", size // 4, offset).reshape(shape)
        constants.append((layer.get("name", ""), array))
    return constants


def load_mobilestylegan(folder: Path) -> MobileStyleGAN:
    """Load the published FFHQ generator at 1024 px.

    Args:
        folder: Folder of `MappingNetwork` and `SynthesisNetwork`, each a .xml and a .bin file.

    Raises:
        ValueError: A constant is missing.
    """
    net = MobileStyleGAN()
    state: dict[str, Tensor] = {}

    mapping = read_constants(folder / "MappingNetwork.xml", folder / "MappingNetwork.bin")
    matrices = [a for _, a in mapping if a.shape == (512, 512)]
    biases = [a for _, a in mapping if a.size == 512]
    if len(matrices) != 8 or len(biases) != 8:
        raise ValueError(f"{folder}: expected 8 mapping layers, found {len(matrices)}")
    for i, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
        state[f"mapping.{i}.weight"] = torch.tensor(matrix)
        state[f"mapping.{i}.bias"] = torch.tensor(bias).flatten()

    synthesis = read_constants(folder / "SynthesisNetwork.xml", folder / "SynthesisNetwork.bin")
    named = {n.removeprefix("m."): a for n, a in synthesis if n.startswith("m.")}
    # Demodulated pointwise kernels and noise maps have no names and are recognised by their order.
    kernels = [a for n, a in synthesis if n.startswith("Mul_") and n.endswith("_copy")]
    square = [a for _, a in synthesis if a.ndim == 4 and a.shape[:2] == (1, 1)]
    noise = [a for a in square if a.shape[2] == a.shape[3] and a.shape[2] >= 4]
    convs = ["conv1", *(f"layers.{i}.conv{k}" for i in range(net.blocks) for k in (1, 2))]
    if len(kernels) != len(convs) or len(noise) != len(convs):
        raise ValueError(
            f"{folder}: {len(kernels)} kernels and {len(noise)} noise maps, not {len(convs)}"
        )
    state["input"] = torch.tensor(named["input.input"][0])
    for name, kernel, grain in zip(convs, kernels, noise, strict=True):
        state[f"{name}.weight"] = torch.tensor(kernel if name == "conv1" else kernel[:, :, 0, 0])
        state[f"{name}.bias"] = torch.tensor(named[f"{name}.bias"]).flatten()
        if name != "conv1":
            state[f"{name}.weight_dw"] = torch.tensor(named[f"{name}.conv.weight_dw"][:, 0])
        net.noise(name).copy_(torch.tensor(grain[0, 0]))
    last = f"layers.{net.blocks - 1}.to_img"
    modulated = {c: f"{c}.conv" for c in convs} | {"to_img": f"{last}.conv"}
    modulated |= {f"layers.{i}.up": f"layers.{i}.up" for i in range(net.blocks)}
    for ours, theirs in modulated.items():
        state[f"{ours}.modulation.weight"] = torch.tensor(named[f"{theirs}.modulation.weight"])
        state[f"{ours}.modulation.bias"] = torch.tensor(
            named[f"{theirs}.modulation.bias"]
        ).flatten()
    state["to_img.weight"] = torch.tensor(named[f"{last}.conv.weight"][:, :, 0, 0])
    state["to_img.bias"] = torch.tensor(named[f"{last}.bias"]).flatten()

    for name in net.weight_names():
        if name not in state:
            raise ValueError(f"{folder}: the model has no constant for {name!r}")
        net.weight(name).copy_(state[name])
    net.set_w_mean()
    return net
