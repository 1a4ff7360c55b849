"""The progress display of a run: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dhr_batch.pipeline.engine.messages import Event
from dhr_batch.pipeline.planning.request import Mode
from dhr_batch.pipeline.printable import printable, without_secrets
from dhr_batch.pipeline.units import duration

# Seconds between two lines in a log file. Small runs have a line for each batch.
_PLAIN_SECONDS = 30.0
# The number of workers that fit on a screen. Drawing a thousand rows would take too much time.
_SHOWN_WORKERS = 30


@dataclass
class RunCounters:
    """The counters of a run since its last start.

    Attributes:
        total: The number of images to process.
        shards: The number of shards to process.
        before: The number of images that earlier starts have finished.
        parallel: The number of workers.
        done: The number of finished images, quarantined ones included.
        failed: The number of quarantined images.
        shards_done: The number of committed shards.
        started: When the first worker was ready, on the monotonic clock.
        first_image_seconds: The time that the first image took.
        workers: What each worker is doing.
        failures: The number of failures of each class.
    """

    total: int
    shards: int
    before: int = 0
    parallel: int = 1
    done: int = 0
    failed: int = 0
    shards_done: int = 0
    started: float = field(default_factory=time.monotonic)
    first_image_seconds: float | None = None
    workers: dict[int, str] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def remaining(self) -> float | None:
        """The estimated remaining seconds; None before the first image."""
        if not self.done:
            return None
        return self.elapsed / self.done * (self.total - self.done)


class Progress:
    """Shows the counters of a run. Use it as a context manager.

    Args:
        state: The counters.
        mode: The kind of display; `auto` depends on the stream.
        quiet: Whether to show nothing at all.
        stream: The output stream, by default stderr.
    """

    def __init__(
        self, state: RunCounters, mode: Mode, quiet: bool, stream: TextIO | None = None
    ) -> None:
        stream = stream or sys.stderr
        self.state, self.quiet = state, quiet
        rich = mode == "rich" or (mode == "auto" and stream.isatty())
        self.mode: Mode = "none" if quiet or mode == "none" else ("rich" if rich else "plain")
        self.console = Console(
            file=stream,
            force_terminal=True if self.mode == "rich" else None,
            no_color=self.mode != "rich",
            highlight=False,
            soft_wrap=True,
        )
        self._live: Live | None = None
        self._last_line = (-1, 0.0)

    def __enter__(self) -> Progress:
        if self.mode == "rich":
            self._live = Live(
                console=self.console, get_renderable=self._table, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a text, above the live table if there is one."""
        if not self.quiet:
            self.console.print(Text(printable(without_secrets(text), keep="\n")))

    def event(self, worker: int, event: Event) -> None:
        """Add an event of a worker to the counters."""
        state = self.state
        state.workers[worker] = event.what
        state.done += event.done
        state.failed += event.failed
        finished = event.done - event.failed
        if finished > 0 and state.first_image_seconds is None:
            state.first_image_seconds = event.seconds / finished
            left = state.first_image_seconds * state.total / state.parallel
            self.say(
                f"first image: {duration(state.first_image_seconds)}; "
                f"estimated total time: {duration(left)}"
            )
        state.failures.update(event.errors)

    def take_back(self, done: int, failed: int, errors: Counter[str]) -> None:
        """Subtract the images of a failed attempt, which will be processed again."""
        self.state.done -= done
        self.state.failed -= failed
        self.state.failures -= errors

    def update(self) -> None:
        """Print a plain line if images were finished and the last line is old enough."""
        state, (done, when) = self.state, self._last_line
        few = state.total <= 20
        due = few or state.elapsed - when >= _PLAIN_SECONDS or state.done == state.total
        if self.mode == "plain" and state.done != done and state.done and due:
            self._last_line = (state.done, state.elapsed)
            self.console.print(Text(self.line()))

    def line(self) -> str:
        """Return the counters as one line."""
        state = self.state
        rate = state.done / state.elapsed if state.elapsed else 0.0
        return (
            f"{state.done}/{state.total} images, {state.shards_done}/{state.shards} shards, "
            f"{rate:.3g} images/s, {state.failed} quarantined, {duration(state.remaining)} left"
        )

    def _table(self) -> Group:
        state = self.state
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=state.total, completed=state.done, width=40), Text(self.line())
        )
        workers = Table.grid(padding=(0, 2))
        for number, what in sorted(state.workers.items())[:_SHOWN_WORKERS]:
            workers.add_row(Text(f"worker {number}", style="dim"), Text(printable(what)))
        if (more := len(state.workers) - _SHOWN_WORKERS) > 0:
            workers.add_row(Text(f"{more} more", style="dim"), Text("in _state/status.json"))
        parts: list[Any] = [bar, workers]
        if state.failures:
            counts = ", ".join(f"{name} {count}" for name, count in state.failures.most_common(5))
            parts.append(Text(f"quarantined: {counts}", style="yellow"))
        return Group(*parts)
