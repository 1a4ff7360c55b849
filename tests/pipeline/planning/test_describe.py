"""Settings explain themselves, and wrong ones are refused before anything heavy is imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from dhr_batch.benchmarks import progress
from dhr_batch.cli import main
from dhr_batch.pipeline.bench import matrix
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import config, describe, layers
from dhr_batch.stages import registry

SCHEMA = jsonschema.Draft202012Validator(describe.schema())


def said(*words: str) -> str:
    done = CliRunner().invoke(main, ["config", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_every_setting_has_a_description_a_type_and_the_default_that_holds() -> None:
    held = layers.flat(config.build([{"dataset": "d"}]).model_dump())
    chosen = {"", *(config.preset("default")[family]["name"] for family in registry.STAGES)}
    found = {s.key: s for s in describe.settings() if s.method in chosen}
    assert held.keys() <= found.keys()
    for key, value in held.items():
        same = [s.default for s in describe.find(key) if s.method in chosen]
        given = key in ("dataset", "preset", "edit.edits")
        assert given or value in [_plain(default) for default in same], key
    for setting in describe.settings():
        assert len(setting.description.split()) >= 3, setting.key
        assert not setting.description.endswith("."), setting.key
        assert setting.type, setting.key


def _plain(value: Any) -> Any:
    # Settings of lists of networks accept a single name, and `none`.
    return {"none": []}.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            ["explain", "edit.follow"],
            ["values: one of: layers, warp, none", "default: layers", "with --preset pti: none"],
        ),
        (["explain", "embed.steps"], ["(of w+)", "default: 26", "with --preset tiny: 2"]),
        (["explain", "refine"], ["refine.name", "refine.weight_share", "refine.passes"]),
        (["explain", "segment.source"], ["default: mean_row"]),
        (["explain"], ["dataset", "measure.size", "edit.edits.beta"]),
        (["show", "--preset", "tiny"], ["generator: tiny", "  parser: none"]),
        (["show", "--set", "refine.name=pti"], ["name: pti", "stop: 0.06"]),
    ],
)
def test_settings_are_explained_and_shown(words: list[str], lines: list[str]) -> None:
    text = said(*words)
    assert [line for line in lines if line not in text] == []


def test_all_settings_are_readable_in_a_terminal_of_80_columns() -> None:
    words = [sys.executable, "-m", "dhr_batch", "config", "explain"]
    written = "".join(text for _, text in progress.on_terminal(words))
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", written).splitlines()]
    assert "  description  factor of the thresholds at the mouth, which edits must be able" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("key", "near"),
    [("edit.folow", "edit.follow"), ("steps", "embed.steps"), ("xyzzy", "config explain")],
)
def test_an_unknown_key_names_similar_ones(key: str, near: str) -> None:
    with pytest.raises(Refused, match=f"unknown setting '{key}'.*{near}"):
        describe.find(key)


def test_the_shown_settings_are_accepted(tmp_path: Path) -> None:
    shown = layers.mapping(config.yaml_files.parse(said("show", "--preset", "tiny")), "shown")
    again = config.build([{"dataset": "d"}, shown])
    assert again == config.build([{"dataset": "d", "preset": "tiny"}, config.preset("tiny")])


def shipped() -> dict[str, Any]:
    found = {name: config.preset(name) for name in config.presets()}
    for name in matrix.shipped_names():
        described = matrix.shipped_matrix(name)
        entries = {**described.embedders, **described.refiners}
        found |= {f"{name}-{entry}": entries[entry].settings for entry in entries}
    return found


def test_the_schema_is_valid() -> None:
    SCHEMA.check_schema(SCHEMA.schema)


@pytest.mark.parametrize("content", shipped().values(), ids=shipped().keys())
def test_the_schema_accepts_what_is_shipped(content: dict[str, Any]) -> None:
    SCHEMA.validate(content)


@pytest.mark.parametrize(
    "content",
    [
        {"sead": 1},
        {"embed": {"name": "w+", "stps": 3}},
        {"refine": "dhrr"},
        {"refine": {"name": "dhr", "steps": -1}},
        {"segment": {"thresholds": {"fase": 1}}},
        {"measure": {"identity": ["nobody"]}},
        {"edit": {"edits": [{"direction": "smile", "rows": 1}]}},
    ],
)
def test_the_schema_refuses_what_a_run_refuses(content: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate(content)
    with pytest.raises(Refused):
        config.build([{"dataset": "d"}, content])


def test_wrong_settings_are_refused_without_torch(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").touch()
    bench = {"datasets": [str(photos)], "embedders": {"w": {}}, "refiners": {"r": {}}}
    bench["refiners"]["r"] = {"settings": {"refine": {"name": "dhr", "stps": 1}}}
    (tmp_path / "bench.yaml").write_text(json.dumps(bench))
    wrong = ["embed.stps=1", "embed.steps=many", "generator=tin", "refine.name=dhrr"]
    wrong += ["segment.parser=nope", "measure.scores=nope", 'edit.edits=[{"direction":"smilee"}]']
    plan = ["plan", "--dataset", str(photos), "--gpus", "0", "--set"]
    commands = [[*plan, text] for text in wrong]
    commands += [["run", "--dataset", str(photos), "--preset", "nope"]]
    commands += [["bench", "-c", str(tmp_path / "bench.yaml"), "--out", str(tmp_path / "out")]]
    commands += [["edit", str(photos), "--set", text] for text in wrong[:3]]
    commands += [["render", str(tmp_path), "--all", "--edit", "smilee=1"]]
    code = (
        "import json, sys\n"
        "from click.testing import CliRunner\n"
        "from dhr_batch.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    done = CliRunner().invoke(main, words)\n"
        "    assert done.exit_code == 2, (words, done.output)\n"
        "    assert 'unknown' in done.stderr or 'many' in done.stderr, (words, done.stderr)\n"
        "print(*{'torch', 'torchvision'} & sys.modules.keys())\n"
    )
    words = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("words", "text", "found"),
    [
        (["run", "--preset"], "t", ["tiny"]),
        (["run", "--dataset"], "por", ["portraits"]),
        (["run", "--from"], "se", ["segment"]),
        (["run", "--set"], "edit.fo", ["edit.follow="]),
        (
            ["run", "--set"],
            "edit.follow=",
            ["edit.follow=layers", "edit.follow=warp", "edit.follow=none"],
        ),
        (["run", "--set"], "refine.name=hf", ["refine.name=hfgi"]),
        (["bench", "--preset"], "sm", ["smoke"]),
        (["models", "pull"], "stl", ["stlpips-alex", "stlpips-vgg"]),
        (["render", "RUN", "--edit"], "smi", ["smile=", "smile_closed=", "smile_open="]),
        (["config", "explain"], "edit.ro", ["edit.rows"]),
    ],
)
def test_shells_complete_values(words: list[str], text: str, found: list[str]) -> None:
    shell = ShellComplete(main, {}, "dhr-batch", "_DHR_BATCH_COMPLETE")
    values = [item.value.removeprefix(text) for item in shell.get_completions(words, text)]
    expected = [value.removeprefix(text) for value in found]
    assert values == expected
