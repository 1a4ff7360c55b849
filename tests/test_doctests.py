"""The examples in docstrings give what they show."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    file
    for top in ("pipeline", "stages")
    for file in sorted((ROOT / top).rglob("*.py"))
    if ">>> " in file.read_text("utf-8")
]
NAMES = [".".join(("dhr_batch", *file.relative_to(ROOT).with_suffix("").parts)) for file in FILES]


def test_there_are_examples() -> None:
    assert {"dhr_batch.stages.measure.metrics", "dhr_batch.pipeline.tables.codec"} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_docstrings_give_what_they_show(name: str) -> None:
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
