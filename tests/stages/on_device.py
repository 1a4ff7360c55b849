"""All stages on a CUDA device that is pretended. `test_on_device.py` runs this file on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facenet_pytorch import InceptionResnetV1

from dhr_batch.pipeline.worker import batches
from dhr_batch.stages import registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks import features
from dhr_batch.stages.networks.faces import identity
from dhr_batch.stages.networks.faces.detect import Face
from dhr_batch.stages.networks.faces.dlib_face import DlibIdentity
from dhr_batch.stages.networks.faces.dlib_resnet import DlibResNet
from dhr_batch.stages.networks.faces.identity import IRBackbone, Portrait
from dhr_batch.stages.networks.generators import stylegan2_layouts
from dhr_batch.stages.networks.parsers import bisenet, segformer
from dhr_batch.stages.networks.transfers import to_device, to_host
from dhr_batch.stages.record import Record
from dhr_batch.stages.tensors import images_to_tensor, tensor_to_images
from dhr_batch.tests import filled, pretended_cuda
from dhr_batch.tests.stages import narrow
from dhr_batch.tests.stages import test_contract as contract

pretended_cuda.install()

models = contract.models
# What optimises: the stage, its name, and settings besides `contract.SMALL`.
OPTIMISERS: list[tuple[str, str, dict[str, Any]]] = [
    ("embed", "w", {"prior": 0.01}),
    ("embed", "w+", {"w_share": 0.0}),
    ("segment", "dhr", {"source": "coarse"}),
    ("segment", "dhr", {"source": "projection"}),
    ("refine", "dhr", {"weight_share": 0.5}),
    ("refine", "dhr", {"weight_share": 1.0}),
    ("refine", "dhr-published", {}),
    ("refine", "weights", {"smallest_layer": 1}),
    ("refine", "feature", {}),
    ("refine", "pti", {"stop": 0}),
    ("refine", "pti", {"stop": 0, "rates": "relative"}),
    ("refine", "sam", {"measured_thresholds": (0.1, 0.2, 0.3, 0.4)}),
]


def test_what_cuda_refuses_is_refused() -> None:
    there = torch.ones(2, 2, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="same device"):
        there @ torch.ones(2, 2)
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(there)
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, device="cuda", generator=torch.Generator())
    assert (there + torch.tensor(1.0)).sum().item() == 8


def test_waits_are_counted_by_their_lines() -> None:
    there = torch.ones(2, 2, device="cuda")
    with pretended_cuda.watch() as quiet:
        there.mul_(2).square().sum().sqrt()
    assert not quiet
    with pretended_cuda.watch() as waits:
        float(there.sum())
        there[there > 0].cpu()
        torch.tensor([1, 2], device="cuda")
    assert waits.total() == 4
    with pretended_cuda.watch() as waits:
        tensor_to_images(torch.ones(1, 3, 2, 2, device="cuda"))
    ((where, what),) = waits
    assert where.startswith("dhr_batch.stages.tensors:")
    assert what == "copy to the host"


def test_copies_to_the_device_wait_for_nothing_and_results_are_one_copy() -> None:
    with pretended_cuda.watch() as waits:
        there = to_device(torch.arange(6.0).reshape(2, 3), "cuda")
        images_to_tensor([portrait(), portrait()], "cuda")
    assert not waits
    with pretended_cuda.watch() as waits:
        first, second = to_host([there, there[1] * 2])
    assert waits.total() == 1
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second.tolist() == [6, 8, 10]


def test_memory_is_what_tensors_hold() -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    there = torch.ones(1000, device="cuda")
    row = there.reshape(10, 100)[3]
    there = there + row.repeat(10)
    assert torch.cuda.memory_allocated() == before + 8000
    del there
    assert torch.cuda.memory_allocated() == before + 4000
    del row
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() == before + 12000


@pytest.fixture(scope="module", params=["tiny", "stylegan2"])
def reached(
    request: pytest.FixtureRequest,
    models: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Context, dict[str, list[Record]]]:
    """A context with this generator, and two records as they reach each stage by default."""
    name = request.param
    if name == "stylegan2":
        name = str(tmp_path_factory.mktemp("generators") / "narrow.safetensors")
        stylegan2_layouts.save(narrow.stylegan2(contract.WIDTHS), Path(name), {})
    context = Context("cuda", name, models, aligned=True)
    records = [Record(f"{i}.png", f"{i}.png", data=contract.photograph(i)) for i in range(2)]
    found = {}
    for stage, member in contract.DEFAULT.items():
        found[stage] = records
        records = contract.build(context, stage, member).run(records)
        assert [r.failure for r in records] == [None, None]
    assert records[0].metrics
    assert records[0].edits
    return context, found


def test_the_generator_is_on_the_device(reached: tuple[Context, dict[str, list[Record]]]) -> None:
    net = reached[0].network("generator", reached[0].generator)
    assert all(weight.is_cuda for weight in net.parameters())


def test_a_batch_fits_beside_what_other_stages_need(
    reached: tuple[Context, dict[str, list[Record]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, before = reached
    if context.generator != "tiny":
        pytest.skip("once is enough")
    stages = [contract.build(context, *member) for member in [*contract.DEFAULT.items()][1:]]
    generator, beside = context.network("generator", context.generator), ("segment", "measure")

    def needed(count: int) -> int:
        records = [replace(before["embed"][0], image_id=str(i)) for i in range(count)]
        peaks = {}
        for stage in stages:
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            records = stage.run(records)
            peaks[stage.family] = torch.cuda.max_memory_allocated() - held
        alone = sum(peaks.pop(family) for family in beside)
        return held + alone + max(peaks.values())

    monkeypatch.setattr(pretended_cuda.memory, "total", int(needed(5) / 0.8))
    size = batches.measured(stages, beside, generator, 1, "cuda")
    # A batch needs less than its images do alone, so half the size may be left.
    assert size in (2, 4)


@pytest.mark.parametrize(("stage", "name"), contract.MEMBERS)
def test_members_mix_no_devices(
    reached: tuple[Context, dict[str, list[Record]]], stage: str, name: str
) -> None:
    context, before = reached
    if (name in contract.ON_STYLEGAN2) == (context.generator == "tiny"):
        pytest.skip("it is tested on the other generator")
    (done,) = contract.build(context, stage, name).run(before[stage][:1])
    assert done.failure is None, done.failure.details


@pytest.mark.parametrize(("stage", "name", "settings"), OPTIMISERS)
def test_steps_wait_for_nothing(
    reached: tuple[Context, dict[str, list[Record]]],
    stage: str,
    name: str,
    settings: dict[str, Any],
) -> None:
    """Steps after the first add no wait, but for every tenth of `pti`.

    The first may, for eigenvectors.
    """
    context, before = reached
    if context.generator == "tiny" and (stage, name) != ("refine", "dhr"):
        pytest.skip("its steps are those of StyleGAN2")
    after: list[pretended_cuda.Waits] = []
    hearing = replace(context, progress=lambda *_: after.append(seen.copy()))
    steps = {"coarse_steps" if stage == "segment" else "steps": 12}
    member = contract.build(hearing, stage, name, **settings, **steps)
    with pretended_cuda.watch() as seen:
        (done,) = member.run(before[stage][:1])
    assert done.failure is None, done.failure.details
    waits = {step + 1: after[step] - after[step - 1] for step in range(1, 12)}
    asked = {step: [*new] for step, new in waits.items() if new}
    assert [*asked] == ([10] if name == "pti" else [])
    for ((where, _),) in asked.values():
        assert where.startswith("dhr_batch.stages.refine.pti:")


def test_further_edits_wait_for_nothing(reached: tuple[Context, dict[str, list[Record]]]) -> None:
    context, before = reached

    def waits(number: int) -> pretended_cuda.Waits:
        edit = {"direction": "smile", "strengths": [0.1 * (1 + i) for i in range(number)]}
        stage = contract.build(context, "edit", "directions", edits=[edit])
        with pretended_cuda.watch() as seen:
            (done,) = stage.run(before["edit"][:1])
        assert done.failure is None, done.failure
        return seen

    assert waits(4) == waits(2)


def test_images_that_are_finished_are_noticed_after_some_steps(
    reached: tuple[Context, dict[str, list[Record]]],
) -> None:
    context, before = reached
    pti = contract.build(context, "refine", "pti", stop=1e9, steps=1000)
    (done,) = pti.run(before["refine"][:1])
    assert done.failure is None, done.failure.details
    assert not any(value.any() for value in done.delta.values())


# ---------------------------------------------------------------------- networks


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """A context whose detector finds the same face everywhere."""

    class Detector:
        def detect(self, images: list[np.ndarray]) -> list[list[Face]]:
            return [[Face(np.array([5.0, 5, 110, 118]), 0.99, identity.TEMPLATE)] for _ in images]

    monkeypatch.setattr(segformer, "DEPTHS", (1, 1, 1, 1))
    monkeypatch.setattr(segformer, "HEAD_CHANNELS", 8)

    def no_models(name: str) -> Path:
        raise AssertionError(f"asked for {name}")

    context = Context("cuda", "tiny", no_models)
    context._networks["detector", "mtcnn"] = Detector()
    return context


def portrait() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    return np.repeat(np.repeat(noise, 16, 0), 16, 1)


IDENTITY = {
    "dlib": lambda c: DlibIdentity(DlibResNet(), c),
    "arcface": lambda c: identity.ArcFace(IRBackbone((1, 1, 1, 1), True), c),
    "curricularface": lambda c: identity.CurricularFace(IRBackbone((1, 1, 1, 1), False), c),
    "facenet": lambda c: identity.FaceNet(InceptionResnetV1(), c),
}


@pytest.mark.parametrize("name", IDENTITY)
def test_identity_networks_mix_no_devices(small: Context, name: str) -> None:
    network = IDENTITY[name](small)
    network.net.eval()
    landmarks = np.random.default_rng(1).uniform(20, 108, (68, 2))
    (found,) = network.describe([Portrait(portrait(), landmarks)])
    assert found is not None
    assert found.ndim == 1
    assert np.isfinite(found).all()


PARSERS = {
    "bisenet": lambda c: bisenet.BiSeNetParser(bisenet.BiSeNet().eval().to(c.device)),
    "segformer": lambda c: segformer.SegFormerParser(segformer.SegFormer().eval().to(c.device)),
    "farl": lambda c: registry.lookup("parser", "farl")(c),
}


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_mix_no_devices(small: Context, tmp_path: Path, name: str) -> None:
    if name == "farl":
        torch.jit.save(filled.MODELS["farl-celebm-448"](), tmp_path / "farl.pt")
        small.models = lambda _: tmp_path / "farl.pt"
    with pretended_cuda.watch() as waits:
        found = PARSERS[name](small).parse(portrait())
    assert found is None or found.shape[1:] == (128, 128)
    assert waits


def test_the_detector_mixes_no_devices(models: Callable[[str], Path]) -> None:
    """MTCNN has small networks of its own, whose weights its package contains."""
    detector = registry.lookup("detector", "mtcnn")(Context("cuda", "tiny", lambda _: Path()))
    # Noise shows no face. Without thresholds, candidates pass all filters.
    detector.net.thresholds = [0.0, 0.0, 0.0]
    with pretended_cuda.watch() as waits:
        found = detector.detect([portrait(), portrait()])
    assert [len(faces) > 0 for faces in found] == [True, True]
    assert waits.total() == 3


def test_feature_networks_mix_no_devices(small: Context) -> None:
    with pretended_cuda.watch() as waits:
        assert features.tiny(small).extract(portrait()).shape == (32,)
    assert waits
