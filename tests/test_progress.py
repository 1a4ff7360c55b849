"""The benchmark that compares the time left on a terminal with the time that a run then takes."""

from __future__ import annotations

import sys

import click
import pytest

from dhr_batch.benchmarks import progress
from dhr_batch.pipeline.units import duration


@pytest.mark.parametrize("seconds", [4.2, 42, 80, 18420])
def test_durations_are_read_back(seconds: float) -> None:
    assert progress.seconds(duration(seconds)) == seconds


def test_estimates_are_compared_with_what_is_true() -> None:
    # A run of 100 s after 10 s of loading, whose end is seen too early by a tenth.
    written = [(0.5, "starting Ray\r\n")]
    for second in range(101):
        left = duration((100 - second) * 0.9) if second < 100 else "0.0 s"
        line = f"\x1b[2K\x1b[33m━━━\x1b[0m  {second // 20}/5 images  {second}%  {left} left"
        written.append((10.0 + second, f"{line}\r\nworker 0  refine\r\n"))
    found = progress.examine(written)
    assert (found["first_sign"], found["longest_silence"]) == (0.5, 9.5)
    assert [row["tenth"] for row in found["rows"]] == [*range(1, 10)]
    for row in found["rows"]:
        assert row["truth"] == pytest.approx(110 - row["elapsed"])
        assert row["ratio"] == pytest.approx(0.9, abs=0.03)
    assert found["widest_line"] < 60


def test_a_command_sees_a_terminal_of_80_columns() -> None:
    code = "import os, sys; print(os.get_terminal_size().columns, sys.stderr.isatty())"
    written = progress.on_terminal([sys.executable, "-c", code])
    assert "".join(text for _, text in written) == "80 True\r\n"
    with pytest.raises(click.ClickException, match=r"ended with 3:\nsorry"):
        progress.on_terminal([sys.executable, "-c", "import sys; print('sorry'); sys.exit(3)"])
