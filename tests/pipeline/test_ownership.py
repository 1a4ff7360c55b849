"""No command overwrites or deletes what it did not write: tried with every name that it writes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dhr_batch.pipeline.bench import run as bench
from dhr_batch.pipeline.bench import write as bench_write
from dhr_batch.pipeline.datasets import synthetic
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.export.formats import FORMATS
from dhr_batch.pipeline.planning import resume
from dhr_batch.pipeline.report import write as report
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.reopening import reopen
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import EXPORT, RUN, Owned
from dhr_batch.tests.pipeline import benched, discs, exported
from dhr_batch.tests.pipeline.foreign import MINE, dhr, files, put

OWNER = "_state/owner.json"


def kinds(names: Mapping[str, bytes]) -> list[str]:
    """One name of those that differ in numbers only."""
    return list({re.sub(r"\d+", "N", name): name for name in names}.values())


@pytest.fixture(scope="module")
def run_files(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All that `run` writes, with its report."""
    run = small_run.copy(tmp_path_factory.mktemp("whole") / "run")
    report.write_report(run)
    return files(run)


@pytest.fixture(scope="module")
def export_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    photographs = exported.write_photographs(folder / "photographs")
    return exported.write_run(folder / "run", photographs)


def no_runs(matrix: Any, out: Path) -> bench.Benchmark:
    return bench.Benchmark(matrix, str(out), [], {})


@pytest.fixture
def commands(
    small_run: Any,
    run_files: dict[str, bytes],
    export_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, tuple[tuple[object, ...], Callable[[Path], dict[str, bytes]]]]:
    """By command: its words without a place, and what it writes into an empty one."""
    monkeypatch.setattr(synthetic, "context", lambda generator: discs.context())
    monkeypatch.setattr(bench_write, "load", lambda *_: [])
    matrix = benched.tiny(small_run.photographs)
    monkeypatch.setattr("dhr_batch.pipeline.bench.matrix.shipped_matrix", lambda name: matrix)

    def by_itself(*words: object) -> Callable[[Path], dict[str, bytes]]:
        def write(out: Path) -> dict[str, bytes]:
            done = dhr(*words, "--out", out)
            assert done.exit_code == 0, (done.output, done.exception)
            return files(out)

        return write

    def benchmark(out: Path) -> dict[str, bytes]:
        bench_write.write_benchmark(no_runs(matrix, out), {})
        return files(out)

    sweep = ("edits", "sweep", small_run.out, "--edit", "smile=1", "--gpus", "0")
    found: dict[str, Any] = {
        "run": (("run", *small_run.words), lambda out: run_files),
        "run --fresh": (("run", *small_run.words, "--fresh", "--yes"), lambda out: run_files),
        "sweep": (sweep, lambda out: run_files),
        "bench": (("bench", "--preset", "smoke", "--gpus", "0"), benchmark),
    }
    made = ("datasets", "synthesize", "--images", "2", "--generator", "tiny")
    alone = {"report": ("report", export_run), "synthesize": made}
    for format_ in FORMATS:
        alone[format_] = ("export", export_run, "--format", format_, "--val", "0.4")
        alone[f"{format_} --fresh"] = (*alone[format_], "--fresh")
    return found | {name: (words, by_itself(*words)) for name, words in alone.items()}


NAMES = ["run", "run --fresh", "sweep", "bench", "report", "synthesize"]
NAMES += [f"{name}{fresh}" for name in FORMATS for fresh in ("", " --fresh")]


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_file_of_every_name_survives(
    commands: dict[str, Any], name: str, tmp_path: Path
) -> None:
    words, write = commands[name]
    written = write(tmp_path / "empty")
    assert len(written) > 1
    for number, file in enumerate(kinds(written)):
        place = tmp_path / str(number)
        put(place, {file: MINE})
        done = dhr(*words, "--out", place)
        assert done.exit_code == 2, (file, done.output, done.exception)
        assert str(place) in done.output
        assert file.partition("/")[0] in done.output
        assert files(place) == {file: MINE}


@pytest.mark.parametrize("name", ["run", "run --fresh", "sweep", "bench", "report"])
def test_a_foreign_object_of_every_name_survives(
    commands: dict[str, Any], name: str, bucket: str, tmp_path: Path
) -> None:
    words, write = commands[name]
    for number, file in enumerate(kinds(write(tmp_path / "empty"))):
        place = connect(f"{bucket}/{number}")
        place.replace(file, MINE)
        done = dhr(*words, "--out", place.place)
        assert done.exit_code == 2, (file, done.output, done.exception)
        assert {key: place.read(key) for key in place.sizes()} == {file: MINE}


@pytest.mark.parametrize("name", ["bench", "report", "synthesize"])
def test_a_file_that_was_replaced_survives_and_the_others_are_written(
    commands: dict[str, Any], name: str, tmp_path: Path
) -> None:
    words, write = commands[name]
    place = tmp_path / "place"
    before = write(place)
    write(place)
    names = sorted(set(before) - {".dhr-batch.json"})
    for taken in (names[::2], names[1::2]):
        put(place, dict.fromkeys(taken, MINE))
        if name == "bench":
            with pytest.raises(Refused) as refusal:
                write(place)
            said = str(refusal.value)
        else:
            done = dhr(*words, "--out", place)
            assert done.exit_code == 2, done.exception
            said = done.output
        assert all(file in said.replace("\n", "") for file in taken)
        after = files(place)
        assert after.keys() == before.keys()
        assert {file for file, data in after.items() if data == MINE} == set(taken)
        for file in taken:
            (place / file).unlink()
        write(place)
    assert MINE not in files(place).values()


@pytest.fixture(params=["local", "s3"])
def copy(request: pytest.FixtureRequest, run_files: dict[str, bytes], tmp_path: Path) -> Storage:
    """The small run with its report."""
    if request.param == "local":
        put(tmp_path / "copy", run_files)
        return connect(tmp_path / "copy")
    storage = connect(f"{request.getfixturevalue('bucket')}/copy")
    for name, content in run_files.items():
        storage.replace(name, content)
    return storage


def start_over(run: Storage) -> str:
    """What --fresh says of files that are not of the run, or why it is refused."""
    folder = RunFolder(run)
    try:
        Owned(run, RUN).claim()
        folder.lock()
        return "\n".join(resume.start_over(folder, run.place, confirmed=True))
    except (Refused, StorageError) as error:
        return str(error)
    finally:
        folder.unlock()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_file_of_a_run_that_was_replaced_survives(
    small_run: Any, copy: Storage, run_files: dict[str, bytes], fresh: bool
) -> None:
    for name in kinds(run_files):
        copy.replace(name, MINE)
        if fresh:
            said = start_over(copy)
            # Logs are kept whatever they hold.
            assert name in said or "/logs/" in name
        else:
            done = dhr("run", *small_run.words, "--out", copy.place)
            assert done.exit_code in (0, 1, 2), done.exception
            # This start has nothing to do, so that it writes neither logs nor its status.
            assert name in done.output.replace("\n", "") or re.search("logs/|status", name)
        assert copy.read(name) == MINE
        for key, content in run_files.items():
            if copy.read(key) != content:
                copy.replace(key, content)


def test_fresh_deletes_the_run_file_by_file_and_names_what_stays(
    small_run: Any, tmp_path: Path
) -> None:
    run = small_run.copy(tmp_path / "run")
    added = {f"{name}/mine.png": MINE for name in ("images", "masks", "report", "_state", ".git")}
    added |= {"README.md": MINE, "images/part-00001.parquet.bak": MINE, "_staging/mine": MINE}
    put(run, added)
    done = small_run.run(run, "--fresh", "--yes")
    assert done.returncode == 0, done.stderr
    after = files(run)
    assert {name: after[name] for name in added} == added
    assert after.keys() == small_run_files(small_run) | added.keys()
    said = done.stderr.replace("\n", "")
    assert "that no run wrote are kept: .git/mine.png, README.md, _staging/mine, " in said
    assert "README.md is kept" in said


def small_run_files(small_run: Any) -> set[str]:
    return set(files(small_run.out))


def test_a_run_that_was_given_back_is_deleted_with_its_earlier_files(
    small_run: Any, tmp_path: Path
) -> None:
    run = RunFolder(small_run.copy(tmp_path / "run"))
    run.lock()
    reopen(run, {1: {"c.png"}})
    assert run.recover().keys() == {0, 2}
    assert resume.start_over(run, "run", confirmed=True) == []
    run.unlock()
    assert files(tmp_path / "run").keys() <= {"_state/lease", OWNER, "_state/logs/worker-0.log"}


def test_of_a_run_without_a_list_fresh_deletes_what_plan_and_manifests_name(
    run_files: dict[str, bytes], tmp_path: Path
) -> None:
    put(tmp_path, run_files | {"images/part-00007.parquet.png": MINE, "masks/a.png": MINE})
    (tmp_path / OWNER).unlink()
    run = RunFolder(tmp_path)
    Owned(run.storage, RUN).claim()
    run.lock()
    left = resume.start_over(run, "run", confirmed=True)
    run.unlock()
    unnamed = {name for name in run_files if name.startswith(("report/", "README.md"))}
    assert len(unnamed) == 5
    assert set(left) == {"images/part-00007.parquet.png", "masks/a.png", *unnamed}
    after = files(tmp_path)
    assert {name: after[name] for name in unnamed} == {name: run_files[name] for name in unnamed}
    assert not any(name.endswith((".parquet", "plan.json")) for name in after)


def test_a_run_without_a_list_goes_on_and_has_one_then(
    small_run: Any, run_files: dict[str, bytes], tmp_path: Path
) -> None:
    # The card has the name of the folder in it.
    run = tmp_path / "run"
    put(run, run_files)
    (run / OWNER).unlink()
    done = dhr("run", *small_run.words, "--out", run)
    assert done.exit_code == 0, done.output
    # Files that are written again just as they were are known from then on.
    known = Owned(connect(run), RUN)
    assert {"README.md", "report/metrics.csv"} <= known.files.keys()
    assert known.unlisted


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A run that can be rendered, and the pictures."""
    from dhr_batch.stages.context import Context
    from dhr_batch.tests.pipeline.runs import test_render

    folder = tmp_path_factory.mktemp("render")
    context = Context("cpu", "tiny", models=lambda name: Path())
    records = [test_render.refined(context, name, 0, 0.03) for name in test_render.IDS[:2]]
    test_render.write(folder / "run", "tiny", context, records)
    for words in ([], ["--edit", "smile=2"]):
        assert dhr("render", folder / "run", "--all", "--out", folder / "out", *words).output
    return folder / "run", files(folder / "out")


def test_render_writes_beside_other_files_and_over_its_own_only(
    rendered: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    run, pictures = rendered
    assert len(pictures) == 4
    # Retouched in a program that keeps the metadata.
    retouched, name = tmp_path / "retouched.png", "a.png.refined.png"
    put(tmp_path, {"retouched.png": pictures[name]})
    with Image.open(retouched) as image:
        notes = image.text  # type: ignore[attr-defined]
        pixels = np.array(image)
    from dhr_batch.pipeline.tables.rows import png

    retouched.write_bytes(png(255 - pixels, notes))
    for mine in (MINE, retouched.read_bytes()):
        out = tmp_path / "out"
        taken = dict.fromkeys([name, "sub/b.png.smile+2.png"], mine)
        put(out, {"beside.png": MINE} | taken)
        for words, kept in (([], "a.png"), (["--edit", "smile=2"], "sub/b.png"), ([], "a.png")):
            done = dhr("render", run, "--all", "--out", out, *words)
            assert done.exit_code == 1, done.output
            assert re.search(rf"{kept}.*is not overwritten", done.output)
            assert done.output.count("is not overwritten") == 1
            assert "\nHint: move it away, or choose another folder with --out\n" in done.stderr
        assert files(out) == pictures | {"beside.png": MINE} | taken
        shutil.rmtree(out)


def test_a_marker_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / ".dhr-batch.json").mkdir()
    with pytest.raises(Refused, match="it is not a file; move it away"):
        Owned(connect(tmp_path), EXPORT).claim()
