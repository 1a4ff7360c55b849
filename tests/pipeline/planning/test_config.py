"""Merging and checking of settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import config, layers

DATA = {"dataset": "portraits"}


def resolved(*given: dict, gpus: int = 0, images: int = 5) -> config.Config:
    return config.resolve(config.build([*given]), gpus, images)


def test_later_layers_win_key_by_key() -> None:
    made = config.build([DATA, {"embed": {"steps": 7}}, {"embed": {"steps": 9}, "seed": 3}])
    assert made.embed["steps"] == 9
    assert made.embed["name"] == config.preset("default")["embed"]["name"]
    assert made.seed == 3


def test_another_member_drops_the_options_of_the_one_before() -> None:
    made = resolved(DATA, {"refine": {"name": "dhr", "steps": 5}}, {"refine": {"name": "none"}})
    assert made.refine == {"name": "none"}


def test_member_and_option_given_together() -> None:
    made = resolved(
        DATA, {"refine": "none"}, layers.assignments(["refine.steps=4", "refine.name=dhr"])
    )
    assert made.refine["steps"] == 4


def test_every_default_is_filled_in() -> None:
    made = resolved(DATA)
    assert made.embed.keys() > {"name", "steps"}
    assert yaml.safe_load(made.to_yaml()) == made.model_dump()


@pytest.mark.parametrize(("images", "size"), [(1, 1), (5, 1), (17, 3), (100, 13), (100_000, 32)])
def test_small_datasets_are_split_whatever_the_machine(images: int, size: int) -> None:
    assert resolved(DATA, images=images).shard_size == size
    assert resolved(DATA, {"shard_size": 7}, images=images).shard_size == 7


def test_generator_follows_the_device() -> None:
    assert resolved(DATA).generator == "mobilestylegan-256"
    assert resolved(DATA, gpus=1).generator == "mobilestylegan-1024"


def test_a_generator_may_be_a_converted_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=r"mine\.safetensors: it does not exist; .* models convert"):
        resolved(DATA, {"generator": "mine.safetensors"})
    with pytest.raises(Refused, match=r"checkpoint; convert it with: .* convert .*ffhq\.pkl"):
        resolved(DATA, {"generator": "ffhq.pkl"})
    (tmp_path / "mine.safetensors").touch()
    made = resolved(DATA, {"generator": "mine.safetensors"})
    assert made.generator == str(tmp_path / "mine.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sead=1", r"unknown setting sead; did you mean 'seed'\?"),
        ("embed.step=1", r"unknown setting embed.step; did you mean 'steps'\?"),
        ("segment.thresholds.fase=1", r"thresholds.fase; did you mean 'face'\?"),
        ("refine.name=dhrr", r"unknown refine.name 'dhrr' \(did you mean 'dhr'\?\); choose from: "),
        ("generator=tin", r"unknown generator 'tin' \(did you mean 'tiny'\?\)"),
        ("embed.steps=many", r"embed.steps: input should be a valid integer.*'many'"),
        (
            "align.face=-1",
            "^align.face: input should be 'largest'.*, or greater than or equal to 0",
        ),
        ("edit.edits=[{direction: 3}]", "^edit.edits.0.direction: input should be a valid string"),
        ("max_quarantined=2", "max_quarantined: input should be less than or equal to 1"),
        ("embed", "not of the form key=value"),
        ("seed=[1", "not valid YAML"),
    ],
)
def test_wrong_settings_name_themselves_and_the_way_out(text: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        resolved(DATA, layers.assignments([text]))


def test_unknown_preset_lists_the_valid_ones() -> None:
    with pytest.raises(Refused, match=r"unknown preset 'big'; choose from: .*tiny"):
        config.preset("big")


def test_files_must_hold_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("- 1\n- 2\n")
    with pytest.raises(Refused, match=r"a\.yaml: expected settings"):
        layers.read_file(file)
    file.write_text("a: [")
    with pytest.raises(Refused, match="not valid YAML"):
        layers.read_file(file)
    file.write_text("")
    assert layers.read_file(file) == {}


@pytest.mark.parametrize("name", config.presets())
def test_every_shipped_preset_resolves(name: str) -> None:
    assert resolved(config.preset(name), DATA).dataset == "portraits"
