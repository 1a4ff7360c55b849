"""Files that others wrote, in commands: one line that names the file, and exit code 2.

Each test names the folder of the case that it comes from.
"""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import dhr_batch
from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages import yaml_files
from dhr_batch.tests.fuzz_seeds import padded, tar_header
from dhr_batch.tests.pipeline.refusals import PLAN, ended, png, refused


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for folder in ("datasets.d", "models.d"):
        (tmp_path / "home" / folder).mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    return folder


# ----------------------------------------------------------------------------------------- YAML

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
YAML: dict[str, tuple[bytes, str]] = {
    "yaml_alias_bomb": (BOMB.encode() + b"name: *a8\n", "with its aliases written out"),
    "yaml_alias_bomb, merged": (
        b"a: &a {x: 1, y: 2}\n"
        + b"".join(
            f"a{i}: &a{i} {{<<: [{', '.join(['*a' + str(i - 1 or '')] * 9)}]}}\n".encode()
            for i in range(1, 9)
        ),
        "with its aliases written out",
    ),
    "yaml_alias_bomb, itself": (b"name: &a [*a]\n", "&a contains itself"),
    "yaml_encoding, UTF-16": ("name: mine\n".encode("utf-16"), "save the file as UTF-8"),
    "yaml_encoding, Latin-1": ("# réglages\nseed: 1\n".encode("latin-1"), "not UTF-8"),
    "yaml_values, date": (b"seed: 2020-99-99\n", "a value cannot be built (month must be"),
    "yaml_values, depth": (b"[" * 20_000, "nested deeper than 64"),
    "yaml_values, digits": (b"seed: " + b"9" * 5000, "a number has more than 100 digits"),
    "yaml_values, sexagesimal": (b"seed: 1" + b":1" * 200_000, "more than 100 digits"),
    "yaml_values, tag": (b"seed: !!python/name:os.system\n", "could not determine a constructor"),
    "yaml_values, key twice": (b"seed: 1\nlimit: 2\nseed: 3\n", "'seed' is given twice (line 3)"),
    "yaml_values, inner key twice": (b"a: [{b: 1, b: 2}]\n", "'b' is given twice (line 1)"),
    "yaml_values, NUL": (b'seed: "\\0"\n', "the character NUL"),
    "yaml_values, surrogate": (b'seed: "\\ud800"\n', "half of a surrogate pair"),
    "yaml_values, length": (b"seed: 1\n" + b"#" * 2**20, "longer than"),
}


@pytest.mark.parametrize("case", YAML)
@pytest.mark.parametrize("place", ["settings", "dataset", "benchmark", "edit"])
def test_yaml_is_refused_in_a_line(
    tmp_path: Path, photographs: Path, case: str, place: str
) -> None:
    content, reason = YAML[case]
    file = tmp_path / "foreign.yaml"
    file.write_bytes(content)
    words: dict[str, list[object]] = {
        "settings": [*PLAN.split(), photographs, "-c", file],
        "dataset": [*PLAN.split(), file],
        "benchmark": ["bench", "--gpus", 0, "--out", tmp_path / "out", "-c", file],
        "edit": [*PLAN.split(), photographs, "--set", f"edit.edits=[{{direction: {file}}}]"],
    }
    result = ended(*words[place])
    assert reason in result.stderr
    refused(file, *words[place])


@pytest.mark.parametrize("value", ["[x, y]", "{a: 1}", "'" + "x" * 50_000 + "'", "~"])
def test_a_wrong_value_is_shown_in_short(tmp_path: Path, photographs: Path, value: str) -> None:
    """Case `yaml_alias_bomb`: what a message shows of a value is bounded."""
    file = tmp_path / "foreign.yaml"
    file.write_text(f"name: 1\nroot: {value}\nimages: {value}\n")
    refused(file, *PLAN.split(), file)
    file.write_text(f"limit: {value if value != '~' else 'x'}\n")
    result = ended(*PLAN.split(), photographs, "-c", file)
    assert result.exit_code == 2
    assert len(result.stderr) < 500


def test_a_pipe_in_a_folder_of_descriptions_is_not_waited_for(tmp_path: Path) -> None:
    """Case `datasets_d_bad_file`."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "mine.yaml").write_text("name: mine")
    assert yaml_files.in_folder(tmp_path) == [tmp_path / "mine.yaml"]


APPLE = b"\0\5\x16\7\0\2\0\0Mac OS X        \0\2\0\0\0\x09\xff\xfe"


def test_a_bad_file_of_a_folder_matters_only_to_who_asks_for_it(
    home: Path, photographs: Path
) -> None:
    """Case `datasets_d_bad_file`."""
    good = f"name: good\nroot: {photographs}\n"
    for folder in ("datasets.d", "models.d"):
        (home / folder / "._mine.yaml").write_bytes(APPLE)
        (home / folder / "binary.yaml").write_bytes(APPLE)
        (home / folder / "folder.yaml").mkdir()
        (home / folder / "gone.yaml").symlink_to("nowhere")
        (home / folder / "list.yaml").write_text("[1, 2]")
        (home / folder / "bomb.yaml").write_text(BOMB)
        (home / folder / "nobody.yaml").write_text("name: nobody\nroot: ~no-such-user/x\n")
    (home / "datasets.d" / "good.yaml").write_text(good)
    (home / "datasets.d" / "celebahq.yaml").write_text("name: [")
    bad = ("binary", "bomb", "folder", "gone", "list")
    for dataset in ("good", photographs):
        planned = ended(*PLAN.split(), dataset)
        assert planned.exit_code == 0, planned.output
    for command in ("datasets list", "models list", "doctor"):
        listed = ended(*command.split(), "--json")
        assert listed.exit_code in (0, 1), listed.output
        assert all(f"{name}.yaml" in listed.output for name in bad), command
        assert "._mine" not in listed.output
    for name in (*bad, "celebahq"):
        refused(home / "datasets.d" / f"{name}.yaml", *PLAN.split(), name)
    for name in bad:
        refused(home / "models.d" / f"{name}.yaml", "models", "pull", name)


URL = "kind: url, sha256: " + "a" * 64 + ", size: 9, url: "
MEMBERS = "members: {a: {member: a, size: 9, sha256: " + "a" * 64 + "}}"
FILE = "kind: file, sha256: " + "a" * 64 + ", path: "
MODELS = {
    "a file that is a folder": (FILE + "/", "is not a file"),
    "a file that is a device": (FILE + "/dev/zero", "is not a file"),
    "a file that is a pipe": (FILE + "PIPE", "is not a file"),
    "a file with a long name": (FILE + "/" + "x" * 400, "does not exist"),
    "a module in a package": (f"kind: package, package: x, module: giftp.m, {MEMBERS}", "module"),
    "a module that is none": (f"kind: package, package: x, module: os..path, {MEMBERS}", "module"),
    "a URL of a pipe": (URL + "file://PIPE", "it is a pipe or a device"),
    "a URL of a device": (URL + "file:///dev/zero", "it is a pipe or a device"),
    "a URL with half a host": (URL + "'http://[::1/x'", "Invalid IPv6 URL"),
    "a URL with a letter": (URL + "http://127.0.0.1/ü", "source.url"),
    "a URL without a file": (URL + "http://127.0.0.1/", "source.url"),
    "a URL with a query alone": (URL + "'http://127.0.0.1/?file=/net.pt'", "source.url"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_had_matters_only_to_who_asks_for_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    source, said = MODELS[case]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "giftp").mkdir()
    (tmp_path / "giftp" / "__init__.py").write_text("raise RuntimeError('it has run')")
    monkeypatch.syspath_prepend(tmp_path)
    about = dict.fromkeys(("role", "description", "licence", "preprocessing"), "-")
    text = "".join(f"{key}: '{value}'\n" for key, value in about.items())
    text += f"name: odd\ncommercial_use: unclear\nsource: {{{source}}}\n"
    (home / "models.d" / "odd.yaml").write_text(
        text.replace("PIPE", str(tmp_path / "pipe")), encoding="utf-8"
    )
    listed = ended("models", "list", "--json")
    assert listed.exit_code == 0, listed.output
    assert '"name": "odd"' in listed.stdout
    pulled = ended("models", "pull", "odd")
    assert pulled.exit_code in (1, 2)
    assert said in pulled.stderr


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("x" * 400, "File name too long"),
        ("s3://bucket/../../x", "correct the URL"),
        ("s3://", "correct the URL"),
        ("nonsense://host/x", "correct the URL"),
        ("s3://[::1/x", "correct the URL"),
        ("https://[::1/x", "download them first"),
    ],
)
def test_a_dataset_without_a_place_matters_only_to_who_asks_for_it(
    home: Path, root: str, said: str
) -> None:
    (home / "datasets.d" / "odd.yaml").write_text(f"root: '{root}'\n")
    listed = ended("datasets", "list", "--json")
    assert listed.exit_code == 0, listed.output
    assert '"name": "odd"' in listed.stdout
    for words in ([*PLAN.split(), "odd"], ["datasets", "check", "odd"]):
        result = ended(*words)
        assert result.exit_code in (1, 2)
        assert said in result.stderr
        assert result.stderr.count("cannot be opened") <= 1


@pytest.mark.parametrize("limit", ["null", "abc", ".nan", ".inf", "-1", "[1]"])
def test_a_limit_that_is_none(home: Path, photographs: Path, limit: str) -> None:
    config = f"config: {{align: {{max_megapixels: {limit}}}}}"
    (home / "datasets.d" / "odd.yaml").write_text(f"root: {photographs}\n{config}\n")
    assert ended("datasets", "check", "odd").exit_code == 0
    refused_by = ended(*PLAN.split(), "odd")
    assert refused_by.exit_code == 2
    assert "align.max_megapixels" in refused_by.stderr


@pytest.mark.parametrize(
    "edit",
    [
        "styleclip: PIPE, beta: 0.1",
        "ganspace: PIPE, component: 1, rows: [1, 2], strengths: [1]",
        "direction: PIPE",
    ],
)
def test_a_pipe_in_place_of_a_direction_is_not_waited_for(
    tmp_path: Path, photographs: Path, edit: str
) -> None:
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    edit = edit.replace("PIPE", str(pipe))
    result = ended(*PLAN.split(), photographs, "--set", f"edit.edits=[{{{edit}}}]")
    assert result.exit_code == 2
    assert str(pipe) in result.stderr
    assert ended("models", "convert", pipe).exit_code == 1
    assert ended("models", "pull", "portraits", "--file", pipe).exit_code == 1


# ------------------------------------------------------------------------------- code of others


@pytest.fixture
def gift(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset whose description names a module, which says so when it is imported."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "giftmod.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "giftmod", raising=False)
    file = tmp_path / "gift.yaml"
    config = "config: {embed: {name: 'giftmod:Stage'}}"
    file.write_text(f"name: gift\nroot: {photographs}\naligned: true\n{config}\n")
    return file


@pytest.mark.parametrize(
    "config",
    [
        "embed: {name: 'giftmod:Stage'}",
        "embed: 'giftmod:Stage'",
        "generator: 'giftmod:make'",
        "measure: {scores: [landmarks, 'giftmod:Scorer']}",
        "measure: {identity: ['giftmod:net']}",
        "segment: {parser: 'giftmod:net'}",
    ],
)
def test_a_dataset_names_no_code(gift: Path, config: str) -> None:
    """Case `dataset_yaml_imports_code`."""
    text = gift.read_text().partition("config:")[0]
    gift.write_text(f"{text}config: {{{config}}}\n")
    said = refused(gift, *PLAN.split(), gift)
    assert "giftmod:" in said
    assert not (gift.parent / "ran").exists()


@pytest.mark.parametrize("allowed", ["--allow-code", "--set", "-c"])
def test_a_user_may_allow_the_code_of_a_dataset(gift: Path, allowed: str) -> None:
    """Case `dataset_yaml_imports_code`."""
    own = gift.with_name("own.yaml")
    own.write_text("embed: {name: 'giftmod:Stage'}\n")
    words = {"--allow-code": [], "--set": ["embed.name=giftmod:Stage"], "-c": [own]}[allowed]
    result = ended(*PLAN.split(), gift, allowed, *words)
    # The module lacks the class, which is known only after it was imported.
    assert "has no attribute 'Stage'" in result.stderr
    assert (gift.parent / "ran").exists()


def test_a_run_of_somebody_else_names_no_code(gift: Path, make_run: Any) -> None:
    """Case `dataset_yaml_imports_code`: the settings in a plan.json."""
    out = make_run()
    plan = out / "plan.json"
    run = dhr_batch.open(out)
    section = {**run.stored.settings.section("refine"), "name": "giftmod:Refiner"}
    changed = run.stored.settings.values | {"refine": section}
    object.__setattr__(run.stored.settings, "values", changed)
    with pytest.raises(Refused, match=r"giftmod:Refiner.*--allow-code"):
        _ = run.networks
    assert plan.exists()
    assert not (gift.parent / "ran").exists()
    run.allow_code = True
    with pytest.raises(ValueError, match="Refiner"):
        _ = run.networks
    assert (gift.parent / "ran").exists()


# ------------------------------------------------------------------------------------------ tar

END, GOOD = b"\0" * 1024, tar_header("ok.png", 3) + padded(b"abc")
PAX = tarfile.XHDTYPE
TARS = {
    "tar_negative_size": GOOD + tar_header("neg.png", -512) + END,
    "tar_negative_size, pax": GOOD
    + tar_header("p", 13, PAX)
    + padded(b"13 size=-512\n")
    + GOOD
    + END,
    "tar_headers, longname": GOOD + tar_header("l", 2**33, tarfile.GNUTYPE_LONGNAME) + b"A" * 512,
    "tar_headers, longlink": GOOD + tar_header("l", 2**20, tarfile.GNUTYPE_LONGLINK) + b"A" * 2**20,
    "tar_headers, pax size": tar_header("p", 29, PAX)
    + padded(b"29 size=99999999999999999999\n")
    + GOOD
    + END,
    "tar_headers, unknown kind": GOOD + tar_header("u", 2**62, b"Z") + END,
    "tar_headers, chain": (tar_header("p", 9, PAX) + padded(b"9 path=a\n")) * 3000 + GOOD + END,
    "tar_headers, no header": GOOD + b"x" * 512 + GOOD + END,
}


@pytest.mark.parametrize("case", TARS)
def test_damaged_archives_are_refused(tmp_path: Path, case: str) -> None:
    file = tmp_path / "it.tar"
    file.write_bytes(TARS[case])
    said = refused(file, *PLAN.split(), file)
    assert "cannot be read as an uncompressed tar archive" in said
    assert ended("datasets", "check", file).exit_code == 1
