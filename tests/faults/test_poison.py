"""Workers that end, or never start: what is held against whom, and what is kept."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from dhr_batch.pipeline.errors import Refused, RunFailed
from dhr_batch.tests.faults import harness
from dhr_batch.tests.faults.stages import HERE, NAMES


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with harness.session(gpus=2):
        yield


def faulty(**options: Any) -> dict[str, Any]:
    return {"name": NAMES["embed"], **options}


def deaths(said: str) -> int:
    return said.count("is lost")


def manifest(out: Path, shard: int) -> dict[str, Any]:
    return json.loads((out / "_state" / "shards" / f"{shard:05d}.json").read_bytes())


GOOD = [f"good-{i}.png" for i in range(12)]


def test_images_that_end_workers_are_the_only_ones_quarantined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"exit-1.png": "crash", "segv-1.png": "crash", "loop-1.png": "timeout"}
    names = [
        name for i, b in enumerate(bad) for name in (*GOOD[i * 4 : i * 4 + 3], b, GOOD[i * 4 + 3])
    ]
    items = harness.photographs(tmp_path / "in", names)
    made = harness.make(items, workers=2, shard_size=5, batch_size=2, image_timeout=1.5)
    out = tmp_path / "out"
    outcome = harness.run(made, out)
    assert (outcome.done, outcome.quarantined, outcome.exit_code) == (12, 3, 0)
    assert harness.classes(out) == bad
    assert harness.finished(out) == GOOD
    said = capsys.readouterr().err
    assert "2 x crash" in said
    assert "1 x timeout" in said
    most = [3, 3, 2]
    assert deaths(said) == sum(most)
    receipts = [manifest(out, shard) for shard in range(3)]
    assert [r["attempts"] for r in receipts] == [count + 1 for count in most]
    assert [len(r["failed_attempts"]) for r in receipts] == most
    assert receipts[0]["worker"]["pid"] > 0
    assert receipts[0]["memory_peak"]["host"] > 10**7
    rows = harness.table(out, "quarantine")
    assert set(rows["stage"]) == {"worker"}
    assert list(rows["source"]) == list(bad)
    assert not rows["message"].str.contains(str(tmp_path)).any()
    assert "Segmentation fault" in "".join(
        p.read_text() for p in (out / "_state" / "logs").iterdir()
    )


def test_three_kinds_in_a_shard_of_64_cost_none_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exit, a segmentation fault and a loop; the rest has the bytes of an undisturbed run."""
    bad = {"exit-1.png": "crash", "segv-1.png": "crash", "loop-1.png": "timeout"}
    mates = [f"good-{i:02}.png" for i in range(61)]
    names = [*mates[:9], "exit-1.png", *mates[9:31], "segv-1.png", *mates[31:50], "loop-1.png"]
    items = harness.photographs(tmp_path / "in", [*names, *mates[50:]])
    assert len(items) == 64
    settings: dict[str, Any] = {"shard_size": 64, "batch_size": 4, "image_timeout": 1.5}
    harness.run(harness.make(items, **settings), tmp_path / "out")
    lost = deaths(capsys.readouterr().err)
    quiet = [item for item in items if item.image_id not in bad]
    harness.run(harness.make(quiet, **settings), tmp_path / "quiet")
    assert harness.classes(tmp_path / "out") == bad
    files, expected = harness.published(tmp_path / "out"), harness.published(tmp_path / "quiet")
    assert list(harness.table(tmp_path / "quiet", "latents")["image_id"]) == mates
    assert files.keys() == expected.keys()
    differ = {name.partition("/")[0] for name in files if files[name] != expected[name]}
    assert differ == {"quarantine"}
    # Two that tell that images have to be computed one by one, and one for each of them.
    assert lost == 2 + len(bad)
    with capsys.disabled():
        print(f"\n{len(bad)} of 64 images quarantined, {lost} workers lost")


@pytest.mark.parametrize(
    "bad", ["cuda-1.png", pytest.param("reader-exit-1.png", marks=pytest.mark.slow)]
)
def test_a_lost_device_or_reader_counts_like_a_lost_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    mates = [f"good-{i:02}.png" for i in range(63)]
    items = harness.photographs(tmp_path / "in", [*mates[:40], bad, *mates[40:]])
    harness.run(harness.make(items, shard_size=64, batch_size=4), tmp_path / "out")
    assert harness.classes(tmp_path / "out") == {bad: "crash"}
    assert harness.finished(tmp_path / "out") == mates
    assert deaths(capsys.readouterr().err) == 3


@pytest.mark.parametrize("bad", ["exit-1.png", "reader-exit-1.png"])
def test_shards_beside_the_one_that_ends_workers_lose_nothing(tmp_path: Path, bad: str) -> None:
    """A worker has several shards in hand when it ends, and cannot say which one was the cause."""
    names = [*GOOD[:3], bad, *GOOD[3:]]
    items = harness.photographs(tmp_path / "in", names)
    harness.run(harness.make(items, shard_size=1), tmp_path / "out")
    assert harness.classes(tmp_path / "out") == {bad: "crash"}
    assert harness.finished(tmp_path / "out") == GOOD
    # The shard in progress may be tried again for the one behind it. Then each is tried alone.
    attempts = [manifest(tmp_path / "out", shard)["attempts"] for shard in range(len(names))]
    assert attempts[3] == 4
    assert sum(attempts) <= len(names) + 4


@pytest.mark.slow
def test_two_such_images_in_a_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["exit-1.png", "good-1.png", "exit-2.png", "good-2.png"]
    items = harness.photographs(tmp_path / "in", names)
    harness.run(harness.make(items, shard_size=4), tmp_path / "out")
    assert harness.classes(tmp_path / "out") == {"exit-1.png": "crash", "exit-2.png": "crash"}
    assert harness.finished(tmp_path / "out") == ["good-1.png", "good-2.png"]
    assert deaths(capsys.readouterr().err) == 4


def test_files_of_an_isolated_shard_equal_those_of_a_quiet_one(tmp_path: Path) -> None:
    """One image after the other, or with a reader ahead and a writer behind: the same bytes."""
    items = harness.photographs(tmp_path / "in", ["good-1.png", "unlucky-1.png", "good-2.png"])
    (tmp_path / "crashes").mkdir()
    embed = faulty(folder=str(tmp_path / "crashes"))
    made = harness.make(items, shard_size=3, batch_size=1, embed=embed)
    for name, attempts in (("unlucky", 3), ("quiet", 1)):
        harness.run(made, tmp_path / name)
        assert manifest(tmp_path / name, 0)["attempts"] == attempts
        assert harness.classes(tmp_path / name) == {}
    assert harness.published(tmp_path / "unlucky") == harness.published(tmp_path / "quiet")
    assert len(harness.published(tmp_path / "quiet")) == 7


def test_memory_that_suffices_for_fewer_images_loses_none(tmp_path: Path) -> None:
    names = [*GOOD[:8], "oom-1.png", *(f"more-{i}.png" for i in range(7))]
    items = harness.photographs(tmp_path / "in", names)
    made = harness.make(items, shard_size=16, batch_size=8, embed=faulty(memory=2))
    outcome = harness.run(made, tmp_path / "out")
    harness.run(harness.make(items, shard_size=16, batch_size=1), tmp_path / "alone")
    assert (outcome.done, outcome.quarantined) == (15, 1)
    assert harness.classes(tmp_path / "out") == {"oom-1.png": "oom"}
    assert harness.finished(tmp_path / "out") == [n for n in names if n != "oom-1.png"]
    for name in ("images", "latents", "metrics"):
        rows, expected = (harness.table(tmp_path / d, name).astype(str) for d in ("out", "alone"))
        assert rows.equals(expected), name


def test_image_errors_cost_no_worker_and_are_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["noface-1.png", "nan-1.png", "nandelta-1.png", "good-1.png"]
    items = harness.photographs(tmp_path / "in", names)
    out = tmp_path / "out"
    harness.run(harness.make(items, shard_size=4), out)
    expected = {"noface-1.png": "no_face", "nan-1.png": "ArithmeticError"}
    assert harness.classes(out) == expected | {"nandelta-1.png": "ValueError"}
    assert harness.finished(out) == ["good-1.png"]
    assert deaths(capsys.readouterr().err) == 0
    rows = harness.table(out, "quarantine").set_index("image_id")
    assert rows["stage"].to_dict() == {
        "noface-1.png": "embed",
        "nan-1.png": "embed",
        "nandelta-1.png": "write",
    }
    assert rows["message"]["nan-1.png"] == "nan-1.png: diverged in x.py"
    log = (out / "_state" / "logs" / "worker-0.log").read_text()
    assert "nan-1.png quarantined in embed as ArithmeticError" in log
    assert "Traceback" in log
    failures = {f["image_id"]: f for f in manifest(out, 0)["failures"]}
    assert "misbehave" in failures["nan-1.png"]["traceback"]


def test_a_read_that_never_ends_stops_the_run_and_blames_no_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = harness.photographs(tmp_path / "in", [*GOOD[:2], "away-1.png", GOOD[2]])
    out, away = tmp_path / "out", tmp_path / "in" / "away-1.png.away"
    away.touch()
    align = f"{HERE}:Impatient"
    made = harness.make(items, shard_size=1, batch_size=1, image_timeout=1.5, align={"name": align})
    message = r"no answer from .*away-1\.png for (\d+) s: is its file system mounted\?"
    # Ends the read where nobody else does: then the run does not fail.
    rescue = threading.Timer(120, away.unlink)
    rescue.start()
    with pytest.raises(RunFailed, match=f"{message}; .*the same command goes on") as stopped:
        harness.run(made, out)
    rescue.cancel()
    with capsys.disabled():
        print(f"\n{stopped.value}")
    assert harness.finished(out) == GOOD[:2]
    assert harness.classes(out) == {}
    away.unlink()
    assert harness.run(made, out).done == 4
    assert harness.finished(out) == [item.image_id for item in items]
    assert deaths(capsys.readouterr().err) == 0


def test_a_full_disk_stops_the_run_and_quarantines_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With more shards in hand, the second may fail before the first is committed.
    monkeypatch.setattr("dhr_batch.pipeline.engine.members.IN_HAND", 1)
    items = harness.photographs(tmp_path / "in", ["good-1.png", "full-1.png"])
    with pytest.raises(RunFailed, match=r"(?i)no space left.*same command goes on"):
        harness.run(harness.make(items, shard_size=1), tmp_path / "out")
    assert list((tmp_path / "out").glob("quarantine/*")) == [
        tmp_path / "out" / "quarantine" / "part-00000.parquet"
    ]
    assert harness.classes(tmp_path / "out") == {}
    assert harness.finished(tmp_path / "out") == ["good-1.png"]


def test_a_bug_stops_the_run_after_two_attempts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = harness.photographs(tmp_path / "in", ["bug-1.png"])
    with pytest.raises(RunFailed, match=r"shard 0 \(bug-1.png\): failed 2 times: TypeError"):
        harness.run(harness.make(items), tmp_path / "out")
    assert deaths(capsys.readouterr().err) == 0


def test_workers_that_only_die_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhr_batch.pipeline.engine.losses.DEATHS_IN_A_ROW", 4)
    items = harness.photographs(tmp_path / "in", [f"exit-{i}.png" for i in range(6)])
    with pytest.raises(RunFailed, match="4 workers crashed in a row"):
        harness.run(harness.make(items, shard_size=6), tmp_path / "out")


def test_a_worker_that_cannot_start_ends_the_run_before_any_shard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = harness.photographs(tmp_path / "in", ["good-1.png", "good-2.png"])
    edit = {"name": NAMES["edit"], "folder": "direction.npy"}
    with pytest.raises(RunFailed, match=r"cannot start: ValueError: direction\.npy cannot be used"):
        harness.run(harness.make(items, workers=2, shard_size=1, edit=edit), tmp_path / "out")
    assert deaths(capsys.readouterr().err) == 0
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_method_that_cannot_use_the_generator_is_refused(tmp_path: Path) -> None:
    items = harness.photographs(tmp_path / "in", ["good-1.png"])
    segment = {"name": "dhr", "parser": "none", "perceptual": "tiny", "source": "projection"}
    made = harness.make(items, generator="tiny", segment=segment)
    with pytest.raises(Refused, match="only StyleGAN2 has; choose a StyleGAN2"):
        harness.run(made, tmp_path / "out")
    assert not (tmp_path / "out" / "plan.json").exists()


@contextlib.contextmanager
def held(gpus: int, cpus: int = 0) -> Iterator[None]:
    # A class of the module would be looked for by the worker, which other packages called `tests`
    # may hide.
    class Holder:
        def ping(self) -> None:
            return None

    holder = ray.remote(num_gpus=gpus, num_cpus=cpus)(Holder).remote()
    ray.get(holder.ping.remote())
    yield
    ray.kill(holder)


@pytest.fixture
def two_logical_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhr_batch.pipeline.planning.devices.torch_device", lambda _config: "cpu")
    monkeypatch.setattr("dhr_batch.pipeline.planning.devices.physical_gpus", lambda: 2)
    monkeypatch.setattr("dhr_batch.pipeline.engine.crew._WAITING_SECONDS", 0.5)


@pytest.mark.usefixtures("two_logical_gpus")
@pytest.mark.parametrize(
    ("gpus", "cpus", "message"),
    [
        (1, 0, "1 of 2 workers wait for a free GPU: 0 of 2 GPUs are free"),
        (0, 1, "1 of 2 workers wait for 1 free CPU core beside a free GPU: 1 of 2 GPUs are"),
    ],
)
def test_a_run_goes_on_with_what_is_free_and_names_what_is_missing(
    gpus: int, cpus: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = harness.photographs(tmp_path / "in", GOOD[:8])
    made = harness.make(items, gpus=2, shard_size=2, embed=faulty(seconds=0.3))
    with held(gpus, cpus):
        outcome = harness.run(made, tmp_path / "out")
    assert outcome.done == 8
    said = capsys.readouterr().err
    assert message in said
    assert "--set cpus_per_gpu=N" in said


@pytest.mark.usefixtures("two_logical_gpus")
def test_waiting_for_a_gpu_has_an_end(tmp_path: Path) -> None:
    items = harness.photographs(tmp_path / "in", GOOD[:4])
    made = harness.make(items, gpus=2, shard_size=2, wait_timeout=1.5)
    message = r"no worker got a free GPU within wait_timeout=1.5 s: 0 of 2 GPUs are free"
    with held(2), pytest.raises(RunFailed, match=message):
        harness.run(made, tmp_path / "out")
    assert not (tmp_path / "out" / "plan.json").exists()


@pytest.mark.usefixtures("two_logical_gpus")
def test_workers_share_a_gpu(tmp_path: Path) -> None:
    items = harness.photographs(tmp_path / "in", GOOD[:8])
    made = harness.make(items, gpus=1, workers_per_gpu=2, shard_size=1, embed=faulty(seconds=0.3))
    with held(1):
        harness.run(made, tmp_path / "out")
    workers = [manifest(tmp_path / "out", shard)["worker"] for shard in range(8)]
    assert {w["number"] for w in workers} == {0, 1}
    assert len({tuple(w["gpus"]) for w in workers}) == 1
