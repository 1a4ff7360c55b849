"""Whether an image or a GPU ended a worker: the rules, then whole runs on logical GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.engine.blame import Blame, Death, Place
from dhr_batch.pipeline.engine.tasks import Queue
from dhr_batch.pipeline.errors import RunFailed
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.tests.faults import harness

A, B = (Place("node", "host", (gpu,)) for gpu in "01")


def whole(place: Place | None) -> Death:
    return Death(place, "crash", "it died")


def test_three_shards_in_a_row_take_a_gpu_out_of_use_and_are_not_blamed() -> None:
    blame = Blame()
    for shard in (4, 7):
        blame.died(shard, whole(A))
        assert not blame.is_broken(A)
    blame.died(9, Death(A, "crash", "it died", "a.png"))
    assert blame.is_broken(A)
    assert blame.history(9).lost == {"a.png": ("crash", "a.png: it died")}
    blame.take_out(A)
    assert [blame.history(shard).deaths for shard in (4, 7, 9)] == [[], [], []]


def test_one_shard_alone_says_nothing_against_its_gpu() -> None:
    blame = Blame()
    for _ in range(5):
        blame.died(4, whole(A))
    assert not blame.is_broken(A)
    assert blame.history(4).isolate


def test_many_bad_images_of_one_shard_say_nothing_against_its_gpu() -> None:
    blame = Blame()
    for name in ("a.png", "b.png", "c.png", "d.png"):
        blame.died(4, Death(A, "crash", "it died", name))
    assert not blame.is_broken(A)
    assert len(blame.history(4).lost) == 4


def test_an_image_that_was_finished_speaks_for_its_gpu() -> None:
    blame = Blame()
    for shard in range(10):
        blame.died(shard, whole(A))
        blame.worked(A)
    assert not blame.is_broken(A)


def test_shards_that_end_workers_on_two_gpus_speak_for_both() -> None:
    blame = Blame()
    for shard in range(3):
        blame.died(shard, whole(B))
        blame.worked(B)
        blame.died(shard, whole(A))
    assert not blame.is_broken(A)
    # Each was finished in the end with no image lost, so that it was the GPUs after all.
    for shard in range(3):
        blame.finished(shard)
    assert blame.is_broken(A)


def test_a_shard_whose_image_was_at_fault_is_no_longer_held_against_its_gpu() -> None:
    blame = Blame()
    blame.died(0, Death(A, "crash", "it died", "a.png"))
    assert set(blame.finished(0).lost) == {"a.png"}
    blame.died(1, whole(A))
    blame.died(2, whole(A))
    assert not blame.is_broken(A)


def test_starts_count_and_cpus_do_not() -> None:
    blame = Blame()
    for _ in range(2):
        blame.failed_start(A)
    assert not blame.is_broken(A)
    blame.failed_start(A)
    assert blame.is_broken(A)
    for shard in range(10):
        blame.died(shard, whole(None))
    assert blame.suits(3, None, [])


def queue(blame: Blame, *shards: int) -> Queue:
    return Queue([Shard(index, ()) for index in shards], blame)


def taken(waiting: Queue, place: Place, *working: Place, beside: bool = False) -> int | None:
    shard = waiting.take(place, working, beside)
    return None if shard is None else shard.index


def test_a_shard_is_tried_again_on_another_gpu() -> None:
    blame = Blame()
    waiting = queue(blame, 1)
    blame.died(0, whole(A))
    waiting.give_back(Shard(0, ()))
    assert taken(waiting, A, A, B) == 1
    assert taken(waiting, A, A, B) is None, "it waits for the other one"
    assert taken(waiting, B, A, B) == 0
    waiting.give_back(Shard(0, ()))
    assert taken(waiting, A, A) == 0, "there is no other one"


def test_a_doubtful_gpu_shows_what_it_can_do_before_it_costs_a_second_image() -> None:
    blame = Blame()
    blame.died(0, Death(A, "crash", "it died", "a.png"))
    waiting = queue(blame, 1)
    waiting.give_back(Shard(0, ()))
    assert taken(waiting, A, A) == 1
    assert taken(waiting, A, A) == 0, "nothing else is left"


def test_a_shard_to_be_tried_alone_does_not_keep_others_from_being_read_ahead() -> None:
    blame = Blame()
    waiting = queue(blame, 1, 2)
    blame.history(0).suspect = True
    waiting.give_back(Shard(0, ()))
    assert taken(waiting, A, A, beside=True) == 1
    assert taken(waiting, A, A, beside=True) == 2
    assert taken(waiting, A, A, beside=True) is None
    assert waiting, "it waits for a worker without another shard"
    assert taken(waiting, A, A) == 0


GOOD = [f"good-{i:02}.png" for i in range(12)]


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with harness.session(gpus=2):
        yield


@pytest.fixture
def two_gpus(session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhr_batch.pipeline.planning.devices.torch_device", lambda _config: "cpu")
    monkeypatch.setattr("dhr_batch.pipeline.planning.devices.physical_gpus", lambda: 2)


def plan(folder: Path, names: list[str], **options: Any) -> Any:
    (folder / "ends").mkdir()
    embed = {"name": "dhr_batch.tests.pipeline.broken_gpu:Embed", "folder": str(folder / "ends")}
    items = harness.photographs(folder / "in", names)
    return harness.make(items, gpus=2, shard_size=2, batch_size=1, embed=embed | options)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("at_start", [False, True])
def test_a_broken_gpu_costs_no_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], at_start: bool
) -> None:
    made = plan(tmp_path, [*GOOD, "exit-1.png"], broken=["1"], at_start=at_start, patience=3)
    out = tmp_path / "out"
    outcome = harness.run(made, out)
    assert (outcome.done, outcome.quarantined, outcome.exit_code) == (12, 1, 0)
    assert harness.classes(out) == {"exit-1.png": "crash"}
    said = capsys.readouterr().err
    assert said.count("is taken out of use") == 1
    assert len(list((tmp_path / "ends").iterdir())) == 3
    assert "GPU 1 of " in said
    manifests = [json.loads(p.read_bytes()) for p in sorted(out.glob("_state/shards/*.json"))]
    assert {tuple(manifest["worker"]["gpus"]) for manifest in manifests} == {("0",)}


@pytest.mark.usefixtures("two_gpus")
def test_a_run_without_a_gpu_that_works_ends_and_blames_no_image(tmp_path: Path) -> None:
    made, out = plan(tmp_path, GOOD, broken=["0", "1"]), tmp_path / "out"
    with pytest.raises(
        RunFailed, match=r"no GPU is left: all workers crashed on GPU 0 of .*, GPU 1 of .* goes on"
    ):
        harness.run(made, out)
    assert list(out.glob("_state/shards/*")) == []
