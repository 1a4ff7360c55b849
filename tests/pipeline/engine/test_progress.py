"""What is shown while a run is going, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.text import Text

from dhr_batch.pipeline.engine import progress as progress_module
from dhr_batch.pipeline.engine.progress import Progress, RunCounters, fitted
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.forecast import Flight, Forecast
from dhr_batch.pipeline.planning import config, estimate, layers
from dhr_batch.pipeline.units import duration, size
from dhr_batch.pipeline.worker.messages import Event


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, mode: str = "auto", quiet: bool = False) -> str:
    forecast = Forecast({"embed": 30.0}, known=True)
    forecast.hands = {0: 0, 1: 0}
    state = RunCounters(total=3, shards=1, forecast=forecast)
    with Progress(state, mode, quiet, stream) as progress:  # type: ignore[arg-type]
        progress.say("hello")
        progress.event(0, Event("shard 0: embed 1-2 of 3"))
        progress.update()
        progress.event(0, Event("shard 0: 2 of 3 done", 2, 1, ["no_face"], seconds=30.0))
        progress.update()
        progress.update()
    assert (state.done, state.failed, state.failures["no_face"]) == (2, 1, 1)
    return stream.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    text = shown(io.StringIO())
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == "hello"
    assert lines[1] == "first image: 30 s; about 30 s left"
    assert lines[2].startswith("2/3 images, 0/1 shards, ")
    assert "1 quarantined" in lines[2]
    assert len(lines) == 3


def test_live_table_on_a_terminal() -> None:
    text = shown(Terminal())
    assert "\x1b[" in text
    assert "no_face 1" in text


LINE = [(0, "3/5 images"), (2, "62 %"), (1, "1 min 20 s left"), (4, "refine 24/38")]


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (80, "3/5 images  62 %  1 min 20 s left  refine 24/38"),
        (40, "3/5 images  62 %  1 min 20 s left"),
        (30, "3/5 images  1 min 20 s left"),
        (12, "3/5 images"),
        (6, "3/5 i…"),
        (0, ""),
    ],
)
def test_a_line_leaves_out_what_does_not_fit(width: int, text: str) -> None:
    assert fitted(LINE, width) == text
    assert cell_len(fitted([(0, "顔の写真"), (1, "写真")], width)) <= width


@pytest.mark.parametrize("width", [80, 40, 20])
def test_the_display_fits_and_tells_the_step_of_an_image(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", str(width))
    # What earlier starts have finished changes nothing.
    forecast = Forecast({"refine": 40.0})
    state = RunCounters(5, 5, before=95, before_failed=40, doing="", forecast=forecast)
    stream = Terminal()
    progress = Progress(state, "rich", False, stream)
    progress.event(0, Event("shard 3: refine 写真 of 1, step 19 of 38", shard=3))
    state.done = state.failed = 1
    flight = Flight(1, 1, 1, "refine", 20.0, step=19, steps=38, pace=1.0)
    state.forecast.hear(0, now[0], [flight], [])
    state.forecast.hands = {0: 1}
    progress.update()
    # One image was computed to the half, in 19 s, and three were not begun.
    assert state.remaining == pytest.approx(19 + 3 * 38, rel=0.1)
    assert state.share == pytest.approx(0.3, abs=0.02)
    progress.console.print(progress._shown())
    lines = stream.getvalue().splitlines()
    assert all(cell_len(Text.from_ansi(line).plain.rstrip()) <= width for line in lines)
    assert "1/5 images" in lines[0]
    assert ("left" in lines[0]) == (width > 20)
    assert ("refine 19/38" in lines[0]) == (width > 60)
    # Without a terminal there is a line after minutes, even if no image was finished.
    log = io.StringIO()
    plain = Progress(state, "auto", False, log)
    for _ in range(400):
        now[0] += 1
        plain.update()
    assert log.getvalue().count("\n") == 2


def test_a_thousand_workers_do_not_fill_the_screen() -> None:
    state = RunCounters(total=3, shards=1, workers={number: "busy" for number in range(1000)})
    stream = Terminal()
    with Progress(state, "auto", False, stream):
        pass
    text = stream.getvalue()
    assert "worker 29" in text
    assert "worker 30" not in text
    assert "970 more" in text


@pytest.mark.parametrize(
    ("mode", "quiet", "expected"), [("plain", True, ""), ("none", False, None)]
)
def test_quiet(mode: str, quiet: bool, expected: str | None) -> None:
    text = shown(io.StringIO(), mode, quiet)
    assert text == expected if expected is not None else "2/3" not in text


def test_a_failed_first_image_is_not_timed() -> None:
    state = RunCounters(total=5, shards=1)
    progress = Progress(state, "none", True, io.StringIO())
    progress.event(0, Event("", done=1, failed=1, errors=["x"], seconds=0.1))
    assert state.first_image_seconds is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (4.21, "4.2 s"), (42, "42 s"), (200, "3 min 20 s"), (18_420, "5 h 07 min")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_size() -> None:
    assert [size(n) for n in (12, 3200, 4.5e9, 7e12)] == ["12 B", "3.2 kB", "4.5 GB", "7.0 TB"]


GENERATOR = estimate.GeneratorFacts(256, rows=23, weights=3_000_000, feature=4_194_304)


def made(*sets: str) -> config.Config:
    given = [{"dataset": "portraits"}, layers.assignments(sets)]
    return config.resolve(config.build(given), 0, 5)


def test_expected_bytes_follow_what_is_stored() -> None:
    edits = (
        "edit.edits=[{direction: a.npy, strengths: [-1, 1]}, {direction: b.npy, strengths: [2]}]"
    )
    tables = estimate.bytes_per_image(made(edits), GENERATOR)
    assert tables["images"] == pytest.approx(6 * 256**2 * 1.8)
    assert tables["deltas"] == pytest.approx(0.13 * 7_194_304)
    assert estimate.bytes_per_image(made("store_deltas=fine"), GENERATOR)["deltas"] > 1.5e6
    all_weights = estimate.bytes_per_image(made("refine.name=pti"), GENERATOR)
    assert all_weights["deltas"] > 2 * tables["deltas"]
    codes = estimate.bytes_per_image(made("refine.name=hyperstyle"), GENERATOR)
    assert codes["deltas"] < 14 * 512 * 4
    assert "deltas" not in estimate.bytes_per_image(made("store_deltas=false"), GENERATOR)
    assert "deltas" not in estimate.bytes_per_image(made("refine=none"), GENERATOR)


def test_a_disk_that_cannot_suffice_is_refused_unless_forced() -> None:
    asked = {"images": 1e6}
    with pytest.raises(Refused, match=r"free space: 1\.0 MB.*--force"):
        estimate.check_space(10**6, asked, images=2, shards=1, force=False)
    line = estimate.check_space(10**6, asked, images=2, shards=1, force=True)
    assert "images 2.0 MB" in line


def test_unknown_space_is_said_and_refuses_nothing() -> None:
    line = estimate.check_space(None, {"images": 1e15}, images=2, shards=1, force=False)
    assert line.endswith("free space: unknown on an object store")
