"""Pictures again from the tables alone: `dhr-batch render` and `Run.render`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import config, plan
from dhr_batch.pipeline.runs import render
from dhr_batch.pipeline.runs.records.stored_plan import Fingerprint, RunSettings
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.tables.files import TableFile
from dhr_batch.pipeline.tables.rows import rows_of
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.pipeline.worker.loading import run_info
from dhr_batch.stages.context import Context
from dhr_batch.stages.edit.rerender import Rerender
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.record import Record, required
from dhr_batch.tests.faults import harness
from dhr_batch.tests.pipeline.noise import noisy

IDS = ("a.png", "sub/b.png", "c.png")
EDITS = (("smile", 2.0), ("yaw", -1.0))


def refined(context: Context, image_id: str, seed: int, size: float) -> Record:
    """A record with offsets as an optimiser leaves them, `size` relative to the weights, and the
    pictures that the exact ones make."""
    generator: Generator = context.network("generator", context.generator)
    draw = torch.Generator().manual_seed(seed)
    ws = generator.broadcast(generator.map(torch.randn(1, 512, generator=draw), 0.7))[0]
    names = [n for n in generator.weight_names("layers.") if "modulation" not in n]
    delta = {
        name: (torch.randn(w.shape, generator=draw) * w.std() * size).numpy()
        for name in names
        for w in [generator.weight(name)]
    }
    feature = generator.to_feature(ws[None])[0]
    feature = feature + 0.3 * torch.randn(feature.shape, generator=draw)
    mask = np.zeros((generator.resolution,) * 2, bool)
    mask[:, : generator.resolution // 2] = True
    record = Record(
        image_id,
        image_id,
        latent=ws.numpy().copy(),
        mask=mask,
        delta=delta,
        feature=feature.numpy(),
    )
    plain = Rerender(context)(record)
    return replace(plain, edits=Rerender(context, EDITS)(record).edits)


def write(root: Path, generator: str, context: Context, records: list[Record]) -> None:
    """A run with an image per shard, and one in quarantine."""
    ids = [record.image_id for record in records] + [IDS[2]]
    items = [harness.item(root, image_id) for image_id in ids]
    layers = [config.preset("tiny"), {"dataset": "d", "gpus": 0, "generator": generator}]
    settings = config.resolve(config.build([*layers, {"shard_size": 1}]), 0, len(items))
    made = plan.make(settings, Dataset(name="d", root="."), items)
    root.mkdir(exist_ok=True)
    (root / "plan.json").write_text(json.dumps(made.stored().to_json()))
    info = run_info(settings, context.network("generator", generator), {})
    failed = Record(IDS[2], IDS[2]).failed("align", "no_face", "no face")
    for shard, record in enumerate([*records, failed]):
        tables = rows_of(record, shard, info)
        for table in info.tables:
            (root / table).mkdir(exist_ok=True)
            file = TableFile(root / table / f"part-{shard:05d}.parquet", table, info)
            file.append(tables.get(table, []))
            file.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    context = Context("cpu", "tiny", models=lambda name: Path())
    records = [refined(context, image_id, i, 0.03) for i, image_id in enumerate(IDS[:2])]
    root = tmp_path_factory.mktemp("runs") / "small"
    write(root, "tiny", context, records)
    return root, records


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square, in grey levels of 255."""
    return float(np.sqrt(np.square(one.astype(float) - other).mean()))


def expected_error(record: Record, context: Context, info: RunInfo) -> float:
    """What noise of the size that the codec promises does to the refined picture."""
    generator = context.network("generator", context.generator)
    picture = Rerender(context)(noisy(record, generator, required(info.deltas))).refined
    return difference(required(picture), required(record.refined))


def test_tables_alone_repeat_the_pictures_of_the_run(made: tuple[Path, list[Record]]) -> None:
    root, records = made
    run = dhr_batch.open(root)
    info = run_info(
        config.Config(**run.plan["config"]), run.networks.network("generator", "tiny"), {}
    )
    for record in records:
        bound = expected_error(record, run.networks, info)
        again = run.render(record.image_id)
        assert again.edits == ()
        assert difference(required(again.refined), required(record.refined)) < 1.5 * bound + 0.5
        edited = run.render(record.image_id, dict(EDITS))
        for edit, then in zip(edited.edits, record.edits, strict=True):
            assert (edit.name, edit.strength) == (then.name, then.strength)
            assert edit.direction_sha256 == then.direction_sha256
            np.testing.assert_array_equal(edit.latent, then.latent)
            assert difference(edit.image, then.image) < 2 * bound + 0.5
            # The bound says something only if the refinement is seen, and the edit moves.
            assert difference(edit.image, required(record.refined)) > 4 * bound
        bare = replace(run.record(record.image_id), delta={}, feature=None)
        assert (
            difference(required(Rerender(run.networks)(bare).refined), required(record.refined))
            > 4 * bound
        )


def test_one_and_a_half_forward_passes_per_picture(
    made: tuple[Path, list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = {"trunk": 0, "from_feature": 0}

    def counted(name: str) -> Callable[..., Any]:
        plain = getattr(MobileStyleGAN, name)

        def call(self: Any, first: torch.Tensor, *rest: Any, **more: Any) -> Any:
            assert not torch.is_grad_enabled()
            passes[name] += len(first)
            return plain(self, first, *rest, **more)

        return call

    run = dhr_batch.open(made[0])
    run.networks.network("generator", "tiny")
    for name in passes:
        monkeypatch.setattr(MobileStyleGAN, name, counted(name))
    run.render(IDS[0])
    assert passes == {"trunk": 1, "from_feature": 1}
    run.render(IDS[0], dict(EDITS))
    # A plain render of each edit, and one of the image, show the motion.
    edits = len(EDITS)
    assert passes == {"trunk": 1 + 1 + edits, "from_feature": 1 + 1 + 2 * edits}


def command(*words: object) -> Result:
    return CliRunner().invoke(main, ["render", *map(str, words)])


def test_the_command_writes_pictures_that_say_what_they_are(
    made: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    root, _ = made
    edits = ["--edit", "smile=2", "--edit", "yaw=-1"]
    done = command(root, "--all", *edits, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    names = [f"{i}.{edit}.png" for i in IDS[:2] for edit in ("smile+2", "yaw-1")]
    assert done.output.split() == [str(tmp_path / name) for name in names]
    with Image.open(tmp_path / "sub/b.png.yaw-1.png") as picture:
        assert picture.text["Comment"] == "edited by dhr-batch: yaw -1"  # type: ignore[attr-defined]
        assert picture.text["dhr-batch:edit"] == "yaw"  # type: ignore[attr-defined]
        again = dhr_batch.open(root).render(IDS[1], {"yaw": -1.0})
        np.testing.assert_array_equal(np.asarray(picture), again.edits[0].image)


def test_several_edits_make_one_picture(made: tuple[Path, list[Record]], tmp_path: Path) -> None:
    root, _ = made
    both = "smile=1+yaw=-0.5"
    done = command(root, "--image", "a.png", "--edit", both, "--edit", "yaw=1", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    names = ("yaw+1", "smile_1+yaw_-0_5")
    assert done.output.split() == [str(tmp_path / f"a.png.{name}.png") for name in names]
    run = dhr_batch.open(root)
    (edit,) = run.render("a.png", [both]).edits
    assert (edit.name, edit.strength) == (both, 1)
    (half,) = run.render("a.png", {both: 0.5}).edits
    assert (half.name, half.strength) == (both, 0.5)
    written = np.asarray(Image.open(tmp_path / f"a.png.{names[1]}.png"))
    np.testing.assert_array_equal(written, edit.image)
    apart = run.render("a.png", {"smile": 1, "yaw": -0.5}).edits
    moved = sum(one.latent - run.latents["a.png"] for one in apart)
    np.testing.assert_allclose(edit.latent - run.latents["a.png"], moved, atol=1e-5)


def test_without_an_edit_the_refined_picture_lies_beside_the_run(
    made: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    root = shutil.copytree(made[0], tmp_path / "mine")
    done = command(root, "--image", "a.png")
    assert done.exit_code == 0, done.output
    picture = np.asarray(Image.open(tmp_path / "mine-render" / "a.png.refined.png"))
    np.testing.assert_array_equal(picture, dhr_batch.open(root).render("a.png").refined)


def test_a_run_may_lie_in_an_object_store(
    made: tuple[Path, list[Record]], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, url = made[0], f"{bucket}/mine"
    place = connect(url)
    for path in (path for path in root.rglob("*") if path.is_file()):
        place.replace(path.relative_to(root).as_posix(), path.read_bytes())
    monkeypatch.chdir(tmp_path)
    done = command(url, "--image", "a.png")
    assert done.exit_code == 0, done.output
    picture = np.asarray(Image.open("mine-render/a.png.refined.png"))
    np.testing.assert_array_equal(picture, dhr_batch.open(root).render("a.png").refined)


def test_a_direction_may_be_a_file(made: tuple[Path, list[Record]], tmp_path: Path) -> None:
    np.save(tmp_path / "age.npy", np.ones(512, np.float32))
    done = command(
        made[0], "--image", "a.png", "--edit", f"{tmp_path}/age.npy=1.5", "--out", tmp_path
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a.png.age+1_5.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "b.png"], r"no rows of image 'b.png'\n.*its 2 images.*sub/b.png"),
        (["--image", "c.png"], r"no rows of image 'c.png'"),
        (["--image", "a.png", "--edit", "smlie=1"], r"unknown direction 'smlie'.*'smile'"),
        (["--image", "a.png", "--edit", "smile"], r"'smile': it is not of the form NAME=STRENGTH"),
        (["--image", "a.png", "--edit", "smile=nan"], r"'smile=nan': it is not of the form"),
        (["--image", "a.png", "--edit", "smile=1,2"], r"'smile=1,2': it is not of the form"),
        (["--image", "a.png", "--edit", "yaw=1+yaw=2"], r"'yaw=1\+yaw=2': it names .* twice"),
        (["--image", "a.png", "--edit", "yaw=1+gone.yaml=2"], r"gone\.yaml: it cannot be read"),
        ([], r"--image ID.*--all"),
        (["--all", "--image", "a.png"], r"--image ID.*--all"),
    ],
)
def test_wrong_words_are_refused(
    made: tuple[Path, list[Record]], words: list[str], message: str, tmp_path: Path
) -> None:
    done = command(made[0], *words, "--out", tmp_path)
    assert done.exit_code == 2
    assert re.search(message, done.output), done.output
    assert list(tmp_path.iterdir()) == []


def test_no_run_is_said(tmp_path: Path) -> None:
    done = command(tmp_path, "--all")
    assert done.exit_code == 2
    assert "no plan.json" in done.output


def test_other_weights_are_refused(made: tuple[Path, list[Record]], tmp_path: Path) -> None:
    run = dhr_batch.open(made[0])
    models = {"mobilestylegan-ffhq": "0" * 16}
    settings = run.plan["config"] | {"generator": "mobilestylegan-256"}
    changed = replace(
        run.stored, settings=RunSettings(settings), fingerprint=Fingerprint(models=models)
    )
    with pytest.raises(Refused, match="made with other weights of mobilestylegan-ffhq"):
        render.context(changed, run.storage.place)


def test_a_run_without_deltas_says_why(made: tuple[Path, list[Record]], tmp_path: Path) -> None:
    root = shutil.copytree(made[0], tmp_path / "run")
    shutil.rmtree(root / "deltas")
    stored = json.loads((root / "plan.json").read_text())
    stored["config"]["store_deltas"] = "none"
    (root / "plan.json").write_text(json.dumps(stored))
    done = command(root, "--all", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert done.output.count("the run was made with store_deltas=none") == 2


def rewritten(root: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Change the rows that the table `deltas` holds of the first image."""
    path = root / "deltas" / "part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(type(table).from_pylist(change(table.to_pylist()), table.schema), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"scheme": "later"}, "unknown scheme 'later'"),
        ({"data": b""}, "0 values do not fit a tensor"),
        ({"scales": []}, "without scales"),
        ({"base": None}, "with base None"),
    ],
)
def test_a_row_that_cannot_be_decoded_costs_its_image_alone(
    made: tuple[Path, list[Record]], tmp_path: Path, damage: dict[str, Any], message: str
) -> None:
    root = shutil.copytree(made[0], tmp_path / "run")
    rewritten(root, lambda rows: [rows[0] | damage, *rows[1:]])
    done = command(root, "--all", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert re.search(f"Error: a.png: .*of 'a.png': .*{message}", done.output), done.output
    assert [path.name for path in tmp_path.glob("out/**/*.png")] == ["b.png.refined.png"]


def test_a_refinement_that_changed_nothing_is_the_inversion(
    made: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    root = shutil.copytree(made[0], tmp_path / "run")
    rewritten(root, lambda rows: [])
    run = dhr_batch.open(root)
    assert run.delta(IDS[0]) == {}
    bare = replace(run.record(IDS[1]), latent=run.latents[IDS[0]], delta={}, feature=None)
    expected = Rerender(run.networks)(bare).refined
    np.testing.assert_array_equal(run.render(IDS[0]).refined, expected)
    with pytest.raises(KeyError, match=r"no deltas of 'c\.png'"):
        run.delta(IDS[2])


def test_a_run_of_the_old_schema_is_rendered(
    made: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    """int8 with a scale per channel, without the columns `base` and `cells`."""
    root = shutil.copytree(made[0], tmp_path / "run")
    path, record = root / "deltas" / "part-00000.parquet", made[1][0]
    table = pq.read_table(path).drop_columns(["base", "cells"])
    rows = table.to_pylist()
    for row in rows:
        stored = {**required(record.delta), "feature": required(record.feature)}[row["tensor"]]
        flat = stored.reshape(len(stored), -1)
        scales = np.maximum(np.abs(flat).max(1), 1e-30) / 127
        row |= {
            "scheme": "int8_channel",
            "scales": scales.tolist(),
            "data": np.rint(flat / scales[:, None]).astype(np.int8).tobytes(),
        }
    pq.write_table(type(table).from_pylist(rows, table.schema), path)
    again = dhr_batch.open(root).render(IDS[0])
    assert difference(required(again.refined), required(record.refined)) < 2


def test_the_embedded_generator_repeats_its_pictures(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    context = Context("cpu", "mobilestylegan-256", models=models)
    # Of the order of what refinement makes them.
    record = refined(context, IDS[0], 0, 0.025)
    write(tmp_path / "run", "mobilestylegan-256", context, [record])
    run = dhr_batch.open(tmp_path / "run")
    edited = run.render(IDS[0], dict(EDITS))
    pairs = [(required(run.render(IDS[0]).refined), required(record.refined))]
    pairs += [(e.image, then.image) for e, then in zip(edited.edits, record.edits, strict=True)]
    sizes = pq.read_metadata(tmp_path / "run/deltas/part-00000.parquet").row_group(0)
    assert sum(sizes.column(i).total_compressed_size for i in range(sizes.num_columns)) < 1.5e6
    for again, then in pairs:
        # 1.5 grey levels of 255 are 44.6 dB; photographs are refined to 31 dB.
        assert difference(again, then) < 1.5
