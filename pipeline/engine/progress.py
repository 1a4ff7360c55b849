"""The progress display of a run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dhr_batch.pipeline.forecast import Forecast
from dhr_batch.pipeline.planning.request import Mode
from dhr_batch.pipeline.printable import printable, without_secrets
from dhr_batch.pipeline.units import duration
from dhr_batch.pipeline.worker.messages import Event

# Seconds between two lines in a log file. Small runs have a line for each batch.
_PLAIN_SECONDS = 30.0
# Seconds after which there is a line even if no image was finished.
_SIGN_OF_LIFE = 300.0
# Seconds between two forecasts, at least, and relative to the CPU seconds that one takes: with a
# thousand workers, that is 0.08 s.
_FORECAST_SECONDS, _REST = 0.5, 50
# The number of workers that fit on a screen. Drawing a thousand rows would take too much time.
_SHOWN_WORKERS = 30
# The width of the bar, and the least width of a terminal that has one.
_BAR, _WITH_BAR = 20, 60
_BETWEEN = "  "


@dataclass
class RunCounters:
    """The counters of a run since its last start.

    Attributes:
        total: The number of images to process.
        shards: The number of shards to process.
        before: The number of images that earlier starts have finished.
        before_failed: The number of these that were quarantined.
        done: The number of finished images, quarantined ones included.
        failed: The number of quarantined images.
        shards_done: The number of committed shards.
        started: When the first worker was ready, on the monotonic clock.
        first_image_seconds: The time that the first image took.
        workers: What each worker is doing.
        failures: The number of failures of each class.
        forecast: The forecast of the remaining time.
        doing: What the driver does while no worker has anything to show.
        share: The share of the images that is finished, parts of those in progress included.
    """

    total: int
    shards: int
    before: int = 0
    before_failed: int = 0
    done: int = 0
    failed: int = 0
    shards_done: int = 0
    started: float = field(default_factory=time.monotonic)
    first_image_seconds: float | None = None
    workers: dict[int, str] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    forecast: Forecast = field(default_factory=lambda: Forecast({}))
    doing: str = "starting"
    share: float = 0.0
    _left: float | None = None
    _looked: float = -_FORECAST_SECONDS
    _pause: float = _FORECAST_SECONDS

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Images that were computed, and not quarantined, per second."""
        return (self.done - self.failed) / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def remaining(self) -> float | None:
        """The estimated remaining seconds; None while nothing is known."""
        if self._left is None:
            return None
        return max(0.0, self._left - (time.monotonic() - self._looked))

    def begin(self) -> None:
        """Note that the first worker is ready."""
        self.started = time.monotonic()

    def look(self, at_once: bool = False) -> None:
        """Forecast the remaining time again, if that is due or it is to be done at once.

        Only the main thread of the driver calls this.
        """
        now = time.monotonic()
        if not at_once and now - self._looked < self._pause:
            return
        began = time.thread_time()
        self._left = self.forecast.left(self.total - self.done, now)
        self._looked = now
        if self.total:
            self.share = min(1.0, (self.done + self.forecast.done(now)) / self.total)
        self._pause = max(_FORECAST_SECONDS, _REST * (time.thread_time() - began))


def fitted(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Join parts of a line and leave out the least important ones until it fits.

    Args:
        parts: The importance, 0 for the most important part, and the text of each part.
        width: The number of columns. Wide characters take two.

    Example:
        >>> fitted([(0, "3/5 images"), (2, "62 %"), (1, "1 min 20 s left")], 30)
        '3/5 images  1 min 20 s left'
    """
    kept = [part for part in parts if part[1]]
    while True:
        text = _BETWEEN.join(text for _, text in kept)
        if cell_len(text) <= width:
            return text
        if len(kept) < 2:
            return set_cell_size(text, max(0, width - 1)) + "…" if width > 0 else ""
        kept.remove(max(kept))


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
                console=self.console, get_renderable=self._shown, refresh_per_second=4
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
            state.forecast.correct()
            state.look(at_once=True)
            known = state.remaining is not None and state.done < state.total
            left = f"; about {duration(state.remaining)} left" if known else ""
            self.say(f"first image: {duration(state.first_image_seconds)}{left}")
        state.failures.update(event.errors)

    def take_back(self, done: int, failed: int, errors: Counter[str]) -> None:
        """Subtract the images of a failed attempt, which will be processed again."""
        self.state.done -= done
        self.state.failed -= failed
        self.state.failures -= errors

    def update(self) -> None:
        """Renew the forecast, and print a plain line if one is due.

        One is due if images were finished and the last line is old enough, or if there was none for
        minutes.
        """
        self.state.look()
        state, (done, when) = self.state, self._last_line
        age = state.elapsed - when
        few = state.total <= 20
        due = few or age >= _PLAIN_SECONDS or state.done == state.total
        changed = state.done != done and bool(state.done)
        if self.mode == "plain" and ((changed and due) or age >= _SIGN_OF_LIFE):
            self._last_line = (state.done, state.elapsed)
            self.console.print(Text(self.line()))

    def line(self) -> str:
        """Return the counters as one line of a log."""
        state = self.state
        return (
            f"{state.done}/{state.total} images, {state.shards_done}/{state.shards} shards, "
            f"{state.share:.0%}, {state.rate:.3g} images/s, {state.failed} quarantined, "
            f"{duration(state.remaining)} left"
        )

    def short_line(self, width: int) -> str:
        """Return the counters as one line of a terminal with so many columns."""
        state = self.state
        if state.doing:
            return fitted([(0, state.doing), (1, duration(state.elapsed))], width)
        parts = [
            (0, f"{state.done}/{state.total} images"),
            (2, f"{state.share:.0%}"),
            (1, "" if state.remaining is None else f"{duration(state.remaining)} left"),
            (3, self._step() or f"after {duration(state.elapsed)}"),
        ]
        return fitted(parts, width)

    def _step(self) -> str:
        """Return the step of the only worker."""
        workers = list(self.state.workers)
        at = self.state.forecast.at(workers[0]) if len(workers) == 1 else None
        if at is None:
            return ""
        return f"{at.stage} {at.step}/{at.steps}" if at.step else at.stage

    def _shown(self) -> Group:
        state, width = self.state, self.console.width
        if width < _WITH_BAR or state.doing:
            parts: list[Any] = [Text(self.short_line(width))]
        else:
            bar = Table.grid(padding=(0, len(_BETWEEN), 0, 0))
            line = self.short_line(width - _BAR - len(_BETWEEN))
            bar.add_row(ProgressBar(total=1, completed=state.share, width=_BAR), Text(line))
            parts = [bar]
        rows = sorted(state.workers.items())
        if len(rows) > 1 or state.remaining is None:
            parts += [
                Text(fitted([(0, f"worker {number}"), (1, printable(what))], width), style="dim")
                for number, what in rows[:_SHOWN_WORKERS]
            ]
        if (more := len(rows) - _SHOWN_WORKERS) > 0:
            parts.append(Text(f"{more} more  in _state/status.json", style="dim"))
        if state.failures:
            counts = ", ".join(f"{name} {count}" for name, count in state.failures.most_common(5))
            parts.append(Text(f"quarantined: {counts}", "yellow", overflow="ellipsis"))
        return Group(*parts)
