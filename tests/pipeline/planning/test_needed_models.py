"""The models of a run are verified before Ray starts, and they are those that networks load."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import ray
from click.testing import CliRunner
from PIL import Image

from dhr_batch.cli import main
from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.models import catalogue, downloads
from dhr_batch.pipeline.planning import config, plan
from dhr_batch.stages import registry
from dhr_batch.stages.base import Stage
from dhr_batch.stages.context import Context

NETWORKS = [
    (family, name)
    for family in registry.TABLE
    if family not in registry.STAGES
    for name in registry.names(family)
]


class Asked(Exception):
    """A network has asked for a model."""


@pytest.mark.parametrize(("family", "name"), NETWORKS)
def test_the_table_names_what_networks_ask_for(family: str, name: str) -> None:
    asked: list[str] = []

    def ask(model: str) -> Path:
        asked.append(model)
        raise Asked(model)

    with contextlib.suppress(Asked):
        registry.lookup(family, name)(Context(device="cpu", generator="tiny", models=ask))
    listed = registry.MODELS.get((family, name), ())
    assert set(asked) <= set(listed)
    assert set(listed) <= set(catalogue.models())


def stage(family: str, name: str, **options: object) -> Stage:
    member = registry.lookup(family, name)
    return member(member.Options(name=name, **options))


def test_stages_name_the_models_of_their_options() -> None:
    assert stage("align", "ffhq").models(aligned=True) == set()
    assert stage("align", "ffhq").models(aligned=False) == {"mtcnn"}
    both = stage("align", "ffhq", landmarks="dlib68").models(aligned=False)
    assert both == {"mtcnn", "dlib-landmarks68"}
    assert "stlpips-alex" in stage("segment", "dhr").models(aligned=True)
    bare = stage("segment", "dhr", error=False, parser="bisenet").models(aligned=True)
    assert bare == {"bisenet-19"}
    assert stage("embed", "e4e", model="psp-ffhq").models(aligned=True) == {"psp-ffhq"}
    measured = stage("measure", "standard", perceptual=("lpips_vgg",), identity="none")
    names = {"lpips-vgg", "lpips-vgg-backbone", "dlib-landmarks68"}
    assert measured.models(aligned=True) == names | {"age-gender"}
    blind = stage(
        "measure", "standard", identity="none", landmarks="none", scores=["age-gender", "mesh"]
    )
    assert blind.models(aligned=True) == {"stlpips-alex", "face-mesh-468"}


def needed(preset: str) -> dict[str, set[str]]:
    settings = config.resolve(
        config.build([config.preset(preset), {"dataset": "portraits"}]), gpus=0, images=1
    )
    return plan.models_of(plan.make(settings, named.find("portraits"), []))


def test_the_models_of_the_default_run_are_marked() -> None:
    """`models list` and `doctor` go by these marks."""
    marked = {name for name, model in catalogue.models().items() if model.default}
    loaded = sorted(set().union(*needed("default").values()))
    assert marked == {model.name for model in downloads.with_required(loaded)} | {"portraits"}


def test_presets_without_landmarks_need_no_judges() -> None:
    assert needed("tiny")["measure"] == set()
    assert needed("masks")["measure"] == {"stlpips-alex"}


@pytest.mark.parametrize(
    ("setting", "model"),
    [
        ("embed.perceptual=st_lpips_alex", "stlpips-alex"),
        ("measure.perceptual=lpips_vgg", "lpips-vgg-backbone"),
    ],
)
def test_a_missing_model_ends_a_run_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, model: str
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(ray, "init", started)
    faces, out = tmp_path / "faces", tmp_path / "out"
    faces.mkdir()
    Image.new("RGB", (64, 64)).save(faces / "a.png")
    words = ["run", "--dataset", str(faces), "--preset", "tiny", "--gpus", "0", "--out", str(out)]
    done = CliRunner().invoke(main, [*words, "--set", setting])
    assert done.exit_code == 1, done.output
    assert f"dhr-batch models pull {model}" in done.output
    assert not (out / "plan.json").exists()
