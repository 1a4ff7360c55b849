"""The ranks of methods: the marks in a column, and one order over the best-known columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from dhr_batch.pipeline.bench.board import Board, BoardColumn
from dhr_batch.pipeline.bench.matrix import BASE
from dhr_batch.pipeline.report.metrics import HEADLINES
from dhr_batch.pipeline.units import number

# What is said of the order.
TEXT = (
    "Methods in the order of their mean rank in the quality columns of this table. Methods whose "
    "figures look equal share a rank. Seconds are not ranked."
)


def ranked(board: Board, column: BoardColumn) -> dict[str, float]:
    """Return the values that are ranked in a column, by method.

    The realism of pictures that are not refined is left out: they show another face, whose mouth
    rightly differs from that of the photograph.
    """
    plain = column.key.rpartition("@")[2] == "realism"
    left_out = {m.name for m in board.compared.methods if plain and m.refiner == BASE}
    return {
        method: own[column.key].value
        for method, own in board.cells.items()
        if column.key in own and method not in left_out
    }


def ranks(values: Mapping[str, float], better: str) -> dict[str, int]:
    """Return the ranks of values by name, from 1; nan has none.

    Values that look equal when they are printed share a rank.

    Args:
        values: The values by name.
        better: `higher` or `lower`.
    """
    shown = {name: value for name, value in values.items() if not math.isnan(value)}
    texts = {name: number(value) for name, value in shown.items()}
    order = sorted(shown, key=lambda name: shown[name], reverse=better == "higher")
    places = list(dict.fromkeys(texts[name] for name in order))
    return {name: places.index(text) + 1 for name, text in texts.items()}


def marks(values: Mapping[str, float], better: str) -> dict[str, str]:
    """Return which values are marked as `best` and `second`.

    A single value has no mark, and if all values are equal, all are marked as best.

    Args:
        values: The values by name.
        better: `higher` or `lower`; "" for no marks.
    """
    found = ranks(values, better)
    if not better or len(found) < 2:
        return {}
    words = {1: "best", 2: "second"}
    return {name: words[rank] for name, rank in found.items() if rank in words}


def marks_of(board: Board, column: BoardColumn) -> dict[str, str]:
    """Return the marks of the methods in a column."""
    return marks(ranked(board, column), column.better)


@dataclass(frozen=True)
class Ranking:
    """The order of the methods of one dataset.

    Attributes:
        columns: The columns that are ranked.
        means: The mean rank of each method in these columns, the best method first.
    """

    columns: Sequence[BoardColumn]
    means: Mapping[str, float]


def ranking(board: Board) -> Ranking | None:
    """Return the order of the methods, or None if no column ranks all of them."""
    found = {
        column: ranks(ranked(board, column), column.better)
        for column in board.columns
        if column.key in HEADLINES and column.better
    }
    found = {column: own for column, own in found.items() if own.keys() == board.cells.keys()}
    if not any(found.values()):
        return None
    means = {m: fmean(own[m] for own in found.values()) for m in board.cells}
    return Ranking(list(found), dict(sorted(means.items(), key=lambda pair: pair[1])))
