"""The measures of edits that papers use: which sets are compared, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner

import dhr_batch
from dhr_batch.benchmarks import editing
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.stages.base import StageOptions
from dhr_batch.stages.context import Context
from dhr_batch.stages.embed.base import Embedder
from dhr_batch.stages.record import Feature
from dhr_batch.tests.pipeline import exported

# The images of each person are 0, 1 and 2: the first one smiles.
FILE = "3\nMale Smiling\n0.png 1 1\n1.png 1 -1\n2.png -1 -1\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose features have a mean of their own for each kind of picture."""
    plain = exported.record
    kinds = ["aligned", "refined", "edit:smile:1", "edit:smile:-1"]

    def record(image_id, number):
        draw = np.random.default_rng(number)
        vectors = [
            Feature(kind, "st_alex", (draw.normal(size=2) / 9 + shift).astype(np.float32))
            for shift, kind in enumerate(kinds)
        ]
        return replace(plain(image_id, number), features=tuple(vectors))

    info = RunInfo(rows=2, embedder="w+", deltas=None, store_features=True)
    monkeypatch.setattr(exported, "INFO", info)
    monkeypatch.setattr(exported, "record", record)
    return exported.write_run(tmp_path / "run", exported.write_photographs(tmp_path / "photos"))


def test_each_strength_is_compared_with_what_it_should_bring(run: Path, tmp_path: Path) -> None:
    (tmp_path / "attributes.txt").write_text(FILE)
    words = [str(run), "--attributes", str(tmp_path / "attributes.txt")]
    done = CliRunner().invoke(editing.main, [*words, "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "out.json").read_text())["editing_fid"]
    found = {row["strength"]: row for row in rows}
    assert set(found) == {-2, -1, 1, 2}
    assert {row["edit"] for row in rows} == {"smile"}
    counts = {s: (r["with"], r["pictures"], r["photographs"]) for s, r in found.items()}
    assert counts[1] == counts[2] == (True, 6, 3)
    assert counts[-1] == counts[-2] == (False, 3, 6)
    assert "edited" not in found[2]
    assert found[1]["unedited"] < found[1]["refined"] < found[1]["edited"]
    assert "| smile +1 | Smiling | frechet_st_alex | 6 | 3 |" in done.output
    assert "| smile -1 | Smiling (without) |" in done.output


def test_edits_whose_strengths_are_targets_are_left_out(run: Path, monkeypatch) -> None:
    opened = dhr_batch.open(str(run))
    table = opened.table("metrics", ["stage", "metric"])
    start = table.slice(0, 1).to_pylist()[0] | {"metric": "start_smile"}
    table = pa.concat_tables([table, pa.Table.from_pylist([start], table.schema)])
    monkeypatch.setattr(type(opened), "table", lambda self, name, columns: table)
    with pytest.raises(Refused, match="no edit with a known attribute"):
        editing.editing_fid(opened, "attributes.txt")


@pytest.mark.parametrize(
    ("ids", "known", "message"),
    [
        (["7.jpg", "8.jpg"], range(7), "no line for '7.jpg' and 1 more of 2 images"),
        ([f"{n}.jpg" for n in range(101)], range(30_000), "numbered anew when the test split"),
    ],
)
def test_names_that_do_not_fit_the_file_are_refused(tmp_path, ids, known, message) -> None:
    file = tmp_path / "attributes.txt"
    file.write_text("0\nSmiling\n" + "".join(f"{n}.jpg 1\n" for n in known))
    with pytest.raises(Refused, match=message):
        editing.labelled(ids, "Smiling", str(file))
    assert editing.labelled(["folder/3.jpg"], "Smiling", str(file)) == {"folder/3.jpg": True}


class Ones(Embedder):
    """Embeds every picture as ones."""

    class Options(StageOptions):
        name: str = "dhr_batch.tests.test_editing:Ones"

    def embed(self, images):
        return torch.ones(len(images), self.generator.num_ws, 512)


def test_the_code_comes_back_from_the_edit(tmp_path: Path) -> None:
    direction = np.random.default_rng(0).normal(size=512).astype(np.float32)
    np.save(tmp_path / "d.npy", direction)
    context = Context("cpu", "tiny", lambda name: tmp_path)
    generator = context.network("generator", "tiny")
    code = np.full((generator.num_ws, 512), 0.5, np.float32)
    settings = SimpleNamespace(section=lambda name: {"name": Ones.Options().name})
    run = SimpleNamespace(
        networks=context,
        stored=SimpleNamespace(settings=settings),
        ids=["a", "b", "c"],
        latents={"a": code, "b": code + 1},
    )
    found = editing.consistency(run, f"{tmp_path / 'd.npy'}=2", 2)
    left = [(value - (1 - 2 * direction)) for value in (0.5, 1.5)]
    rows = len(generator.live_rows)
    assert found == pytest.approx([np.sqrt(rows * np.square(x).sum()) for x in left], rel=1e-5)


def test_nothing_to_measure_is_refused(run: Path) -> None:
    done = CliRunner().invoke(editing.main, [str(run)])
    assert done.exit_code == 2
    assert "nothing is to be measured" in done.output
