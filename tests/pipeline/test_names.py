"""Names and other texts of users are shown as they are: neither markup nor codes nor formulas."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from dhr_batch.cli import main
from dhr_batch.pipeline.bench import latex
from dhr_batch.pipeline.bench import text as bench_text
from dhr_batch.pipeline.cli import models as cli_models
from dhr_batch.pipeline.cli import render as cli_render
from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.datasets.items import Item, Listing
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.engine.progress import Progress, RunCounters
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.export import marks
from dhr_batch.pipeline.files import shortened
from dhr_batch.pipeline.models.doctor import Check
from dhr_batch.pipeline.picture_names import edit_labels
from dhr_batch.pipeline.planning import command, prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.printable import LogFormatter, csv_cell, printable, without_secrets
from dhr_batch.pipeline.report.write import write_report
from dhr_batch.stages.record import EditedImage, Record
from dhr_batch.tests.pipeline import exported, reported

CODES = ["\x1b[31mred.png", "\x1b]0;title\x07.png", "two\nlines.png", "\u202egnp.exe.png"]
SHOWN = [r"\x1b[31mred.png", r"\x1b]0;title\x07.png", r"two\nlines.png", r"\u202egnp.exe.png"]
MARKUP = ["face [copy].png", "[red]x.png", "IMG_1 [edited].jpg", "a[/b].png", ":smile:.png"]


def dhr(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    for name in [*CODES, *MARKUP]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_tables_show_names_as_they_are(photographs: Path, tmp_path: Path) -> None:
    """The cases names_as_markup and names_control_codes."""
    run = exported.write_run(tmp_path / "run", photographs)
    said = dhr("quarantine", "list", run)
    for name in [*MARKUP, *SHOWN]:
        assert any(line.startswith(f"{name} ") for line in said.splitlines()), name
    assert len(said.splitlines()) == 1 + len(MARKUP) + len(CODES) + len(["zoe.png"])
    rows = json.loads(dhr("quarantine", "list", run, "--json"))
    assert {row["image_id"] for row in rows} == {*MARKUP, *CODES, "zoe.png"}


def test_checks_and_errors_have_one_line_for_each_name(photographs: Path) -> None:
    """The case names_control_codes."""
    said = dhr("datasets", "check", photographs, code=1)
    for name in SHOWN:
        assert any(name in line for line in said.splitlines()), name
    assert "\x1b" not in said
    said = dhr("plan", "--dataset", photographs / "no\nsuch\x1b[2J" / "folder", code=2)
    assert [line.split(":")[0] for line in said.splitlines()] == ["Error", "Hint"]
    assert r"no\nsuch\x1b[2J" in said


def test_descriptions_of_models_and_datasets_are_no_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case names_as_markup."""
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path))
    texts = {"licence": "[/mine] and [b]bold[/b]", "description": "[/]"}
    (tmp_path / "datasets.d").mkdir()
    (tmp_path / "datasets.d" / "mine.yaml").write_text(yaml.safe_dump({**texts, "root": "[/x]"}))
    assert "[/mine] and [b]bold[/b]" in dhr("datasets", "list")
    model = {"name": "mine", "role": "[/r]", "commercial_use": "allowed", "preprocessing": "-"}
    source = {"kind": "file", "path": "weights [/w].pt"}
    (tmp_path / "models.d").mkdir()
    (tmp_path / "models.d" / "mine.yaml").write_text(
        yaml.safe_dump(model | texts | {"source": source})
    )
    said = dhr("models", "list")
    assert "[/r]" in said
    assert "weights [/w].pt" in said
    found = cli_models._doctor_table([Check(name="[/a]", state="ok", found="[/b]", way_out="[c]")])
    assert [str(cell) for column in found.columns for cell in column.cells] == [
        "[/a]",
        "ok",
        "[/b]",
        "[c]",
    ]


def test_progress_and_logs_have_no_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """The case names_control_codes."""
    with Progress(RunCounters(total=1, shards=1), "plain", quiet=False) as progress:
        progress.say("in [red]\x1b[31m")
    assert capsys.readouterr().err == "in [red]\\x1b[31m\n"
    record = logging.LogRecord("dhr_batch", logging.INFO, "", 0, "%s", ("a\nb\x1b",), None)
    record.details = "Traceback:\n  \x1b"
    assert LogFormatter("%(message)s").format(record) == "a\\nb\\x1b\nTraceback:\n  \\x1b"


@pytest.fixture
def hostile_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A finished run whose images have the given ids."""

    def make(*ids: str) -> Path:
        monkeypatch.setattr(reported, "IDS", list(ids))
        return reported.made(tmp_path)

    return make


def test_csv_files_have_no_formulas(hostile_run: Callable[..., Path]) -> None:
    """The case names_formula_csv."""
    ids = ["=1+2.png", "+1.png", "-1.png"]
    page = Path(write_report(hostile_run(*ids)))
    rows = list(csv.DictReader((page.parent / "metrics.csv").open()))
    assert {row["image_id"] for row in rows} == {f"'{name}" for name in ids}
    assert all(float(row["psnr"]) > 0 for row in rows if row["psnr"])
    found = next(csv.reader(io.StringIO(bench_text._csv([["@a", "\tb", "c-d", -1.5, None]]))))
    assert found == ["'@a", "'\tb", "c-d", "-1.5", ""]
    assert csv_cell("a=b") == "a=b"
    for start in ("\x1b]0;", "\x00=", "\n=", "\x85", "\uff1d", "\uff20"):
        assert csv_cell(f"{start}1.png") == f"'{start}1.png"


@pytest.mark.parametrize(
    "name",
    ["two\nlines.png", "a" * 3000 + ".png", "ש" * 60, "👩‍🦰.png", "\x00\x07.png", "\u2028.png"],
)
def test_any_name_has_a_report(hostile_run: Callable[..., Path], name: str) -> None:
    """The case report_newline_in_name."""
    folder = Path(write_report(hostile_run("a.png", "b.png", name))).parent
    assert {file.name for file in folder.iterdir()} == {
        "contact_sheet.png",
        "index.html",
        "metrics.csv",
        "metrics.md",
    }


def test_a_report_shows_names_without_codes_and_markup(hostile_run: Callable[..., Path]) -> None:
    ids = [*CODES, "\x9b31m.png", "</script><script>alert(1)</script>.png", '"><img src=x>.png']
    text = Path(write_report(hostile_run(*ids))).read_text("utf-8")
    assert not re.search("[\x00-\x08\x1b\x7f-\x9f\u202e\u2066-\u2069]", text)
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert r"\u202egnp.exe.png" in text


def test_long_labels_stay_in_their_column_of_a_sheet(make_run: Callable[..., Path]) -> None:
    assert write_report(make_run(edits=[("long\nlabel " * 50, 1.0)]))


HOSTILE = {
    "name": "x<img src=y onerror=alert(1)> [a](javascript:b) `c` | *d*",
    "licence": "<script>alert(1)</script>",
}


def card(run: Path, out: Path, *words: str) -> tuple[dict[str, Any], str]:
    dhr("export", run, "--out", out, "--keep-faceless", *words)
    _, head, body = (out / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_card_shows_texts_as_they_are(tmp_path: Path) -> None:
    """The case names_html_in_card."""
    pictures = exported.write_photographs(tmp_path / "pictures")
    run = exported.write_run(tmp_path / "run <b>", pictures)
    dataset = tmp_path / "set.yaml"
    dataset.write_text(yaml.safe_dump({**HOSTILE, "root": str(pictures)}))
    plan = json.loads((run / "plan.json").read_text())
    plan["dataset"], plan["config"]["dataset"] = HOSTILE["name"], str(dataset)
    (run / "plan.json").write_text(json.dumps(plan))
    head, body = card(run, tmp_path / "set")
    assert "<img" not in body
    assert "<script" not in body
    assert "<b>" not in body
    assert r"&lt;img src=y onerror=alert(1)&gt; [a\](javascript:b) \`c\` \| \*d\*" in body
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    assert head["dhr_batch"]["dataset"] == HOSTILE["name"]
    assert head["dhr_batch"]["photograph_licence"] == HOSTILE["licence"]


def test_latex_shows_texts_as_they_are() -> None:
    assert latex._tex("a_b\n\n{c}\\d<e>|") == (
        r"a\_b \{c\}\textbackslash{}d\textless{}e\textgreater{}\textbar{}"
    )
    assert latex._row(["[1cm] name", "2"]) == r"{}[1cm] name & 2 \\"
    assert latex._row(["name", "[2, 3]"]) == r"name & [2, 3] \\"


LABELS = [("улыбка", 1.0), ("微笑", 1.0), ("笑顔", 1.0), ("age old", 1.0), ("age.old", 1.0)]


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(exported, "EDITS", LABELS)
    return exported.write_run(tmp_path / "run", exported.write_photographs(tmp_path / "pictures"))


@pytest.mark.parametrize("format_", ["imagefolder", "hf", "webdataset"])
def test_edits_have_a_class_each(labelled: Path, tmp_path: Path, format_: str) -> None:
    """The case export_labels_collide, and one order of the classes in all formats."""
    out = tmp_path / "set"
    head, _ = card(labelled, out, "--format", format_, "--include", "source")
    classes = head["dhr_batch"]["classes"]
    assert classes == sorted(set(classes))
    assert len(classes) == 1 + len(LABELS)
    assert {"source", "улыбка+1", "微笑+1", "笑顔+1"} < set(classes)
    if format_ == "imagefolder":
        assert sorted(folder.name for folder in (out / "train").glob("*/")) == classes
        lines = [json.loads(line) for line in (out / "train/metadata.jsonl").open()]
        assert all(line["file_name"].startswith(line["label"] + "/") for line in lines)
    elif format_ == "webdataset":
        with tarfile.open(out / "train-00000.tar") as tar:
            read = {m.name: tar.extractfile(m).read() for m in tar if m.name[-4:] != ".png"}  # type: ignore[union-attr]
        lines = [json.loads(text) for name, text in read.items() if name.endswith(".json")]
        numbers = [int(text) for name, text in read.items() if name.endswith(".cls")]
        assert [classes.index(line["label"]) for line in lines] == numbers
    else:
        datasets = pytest.importorskip("datasets")
        loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
        assert loaded.features["label"].names == classes
        lines = [row | {"label": classes[row["label"]]} for row in loaded.remove_columns("image")]
    found = {(line["edit"], line["label"]) for line in lines if line["kind"] == "edit"}
    assert len(found) == len(dict(found)) == len({label for _, label in found}) == len(LABELS)


@pytest.mark.parametrize(
    ("edits", "kept"),
    [
        ([("smile", 1.0), ("smile", 2.0)], 2),
        ([("smile", 1.0), ("Smile ", 1.0)], 2),
        ([("smile", 1.0), ("Smile", 1.0)], 0),
        ([("a/b", 1.0), ("a\\b", 1.0), ("a:b", 1.0)], 0),
        ([("a", 1e20), ("a+1e", 20.0)], 0),
        ([("a", 0.1234567), ("a", 0.1234568)], 0),
        ([("__old", 1.0), ("_old", 1.0), ("_ old", 1.0)], 0),
        ([("e\u0301", 1.0), ("\u00e9", 1.0)], 0),
        ([("x" * 300, 1.0), ("x" * 300 + "y", 1.0), ("影" * 200, 1.0)], 3),
    ],
)
def test_names_of_classes_never_collide(edits: list[tuple[str, float]], kept: int) -> None:
    names = edit_labels(edits)
    assert len({name.casefold() for name in names.values()}) == len(edits)
    assert all(len(name.encode()) < 200 and "/" not in name for name in names.values())
    # `datasets` leaves out the pictures in such folders.
    assert not any(name.startswith("__") for name in names.values())
    assert sum(name == edit_labels([edit])[edit] for edit, name in names.items()) == kept


def test_metadata_of_pictures_is_sound_xml() -> None:
    from xml.etree import ElementTree

    from dhr_batch.pipeline.export.pictures import Picture

    picture = Picture("a", "a", "edit", "\x1b<&\"'\x00", 1.0, None, None, {})
    packet = ElementTree.fromstring(marks.xmp(picture))
    assert any(r"\x1b<&" in value for node in packet.iter() for value in node.attrib.values())


def test_shortened_names_fit_and_stay_apart() -> None:
    assert shortened("a" * 240) == "a" * 240
    long = ["é" * 200, "é" * 199 + "e"]
    assert len({shortened(name) for name in long}) == 2
    assert all(len(shortened(name).encode()) <= 240 for name in long)


def test_any_name_is_rendered_and_an_error_costs_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case render_long_name."""
    ids = [
        "a" * 246 + ".png",
        f"sub/{'é' * 126}",
        "nul\0.png",
        "two\nlines.png",
        r"two\nlines.png",
        "file/a.png",
        f"{tmp_path}/../absolute.png",
        f"/{tmp_path}/absolute.png",
        "../../outside.png",
        "outside.png",
        "z.png",
    ]
    monkeypatch.setattr(cli_render, "renderer", lambda *_: lambda record: record)
    monkeypatch.setattr(cli_render.origin, "inputs", lambda *_: ())
    tmp_path = tmp_path / "inner" / "out"
    tmp_path.mkdir(parents=True)
    (tmp_path / "file").write_text("in the way")
    run = Mock(record=lambda i: Record(i, i, refined=np.zeros((8, 8, 3), np.uint8)))
    found = list(cli_render.write_pictures(run, ids, [], tmp_path))
    (error,) = (one for one in found if isinstance(one, CommandError))
    assert error.what == "file/a.png"
    assert "cannot be written" in error.why
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert written == {path.relative_to(tmp_path).as_posix() for path in found if path is not error}
    assert len(written) == len(ids) - 1
    assert {r"nul\x00.png.refined.png", r"two\nlines.png.refined.png"} < written
    assert "z.png.refined.png" in written


def test_each_edit_has_a_picture() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    edits = tuple(EditedImage(name, 1.0, "", image, image) for name, _ in LABELS)
    assert len(cli_render.pictures(Record("a.png", "a.png", edits=edits))) == len(LABELS)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "https://user:TOPSECRET@127.0.0.1:9/x/plan.json: no",
            "https://***@127.0.0.1:9/x/plan.json: no",
        ),
        ("HEAD https://token@host/x after", "HEAD https://***@host/x after"),
        ("https://user:p@ss@host/x", "https://***@host/x"),
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        ("abfss://container@account/x", "abfss://container@account/x"),
        ("https://host/a.tar?X-Amz-Signature=1&b=2", "https://host/a.tar?***"),
        ("https://host/a?sv=1&sig=2 and more", "https://host/a?*** and more"),
        ("https://host/a?download=1", "https://host/a?download=1"),
        ("mail me@example.org", "mail me@example.org"),
        ("/photos/a@b:c", "/photos/a@b:c"),
    ],
)
def test_secrets_in_urls_are_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


URL = "s3://user:TOPSECRET@127.0.0.1/x/"


@pytest.mark.parametrize(("place", "code"), [(URL, 1), (URL.replace("s3", "https"), 2)])
def test_a_command_hides_the_password_of_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, code: int
) -> None:
    """The case secret_in_url_printed."""
    monkeypatch.setenv("DHR_BATCH_STORAGE_PATIENCE", "0.5")
    described = tmp_path / "described.yaml"
    described.write_text(f"root: {place}")
    for dataset in (place, described):
        said = dhr("plan", "--dataset", dataset, "--preset", "tiny", "--gpus", 0, code=code)
        assert place.replace("user:TOPSECRET", "***") in said
        assert "TOPSECRET" not in said


def test_no_plan_holds_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case secret_in_url_printed."""
    items = [Item("a.png", URL, "a.png", 5)]
    monkeypatch.setattr(prepare.named, "listed", lambda _: Listing(items, Counter()))
    monkeypatch.setattr(prepare.origin.locations, "exists", lambda _: False)
    request = Request({"dataset": URL, "preset": "tiny", "gpus": 0}, out=str(tmp_path / "run"))
    plan = prepare.prepare(request)
    run = runner.claimed(plan, request)
    runner.continued(run, plan, request)
    run.lock()
    run.write_plan(plan.stored())
    run.unlock()
    assert plan.dataset.location == URL
    assert plan.shards[0].items[0].location == f"{URL}a.png"
    texts = [path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    texts += [plan.config.to_yaml(), command.goes_on(plan.stored(), "run"), plan.dataset.name]
    assert not any("TOPSECRET" in text or "user" in text for text in texts)
    assert any("s3://***@127.0.0.1/x/" in text for text in texts)
    assert named.find("s3://user:TOPSECRET@127.0.0.1").name == "127.0.0.1"


def test_printable_keeps_letters() -> None:
    text = "büşra 東\u3000京 \u202f👩‍🦰"
    assert printable(text) == text
    assert printable("\ud800\x9b\r") == r"\ud800\x9b\r"
