"""What methods cost: seconds, memory and bytes, and what was measured in turn."""

from __future__ import annotations

import math

from dhr_batch.pipeline.bench.data import RENDERED_FROM, Method
from dhr_batch.pipeline.bench.turns import CLOCKS
from dhr_batch.pipeline.stats.bootstrap import Estimate, estimate, ratio
from dhr_batch.stages.registry import STAGES

# The headings of tables.
COST = "Cost"
# What `turns` has measured, by clock.
IN_TURN = {
    "seconds": "Seconds per image in turn",
    "cpu_seconds": "CPU seconds per image in turn",
}
# The stages of which seconds per image are the sum. The others are the same for all methods.
_MAIN_STAGES = ("embed", "segment", "refine")
_TURN_TITLES = {
    sheet: {
        f"turn_{clock}_{key}{ratio}": f"{name}{unit}"
        for ratio, unit in (("", " [s]"), ("_ratio", ": ratio"))
        for key, name in ({stage: stage for stage in STAGES} | {"all": "all stages"}).items()
    }
    for clock, sheet in IN_TURN.items()
}
_COST_TITLES = {
    "turn_seconds": "in turn: s per image",
    "turn_seconds_ratio": "in turn: ratio of seconds",
    "turn_cpu_seconds": "in turn: CPU s per image",
    "turn_cpu_seconds_ratio": "in turn: ratio of CPU seconds",
    "turn_generator_calls": "in turn: calls of the generator",
    "seconds": "s per image",
    **{f"seconds_{stage}": f"{stage} [s]" for stage in STAGES},
    "memory_host": "peak memory [GiB]",
    "memory_gpu": "peak GPU memory [GiB]",
    "bytes": "MB to render again",
    "bytes_all": "MB of all tables",
}
# The heading of each column, and that of its table.
HEADINGS = {
    key: (heading, sheet)
    for sheet, headings in (_TURN_TITLES | {COST: _COST_TITLES}).items()
    for key, heading in headings.items()
}


def costs_of(method: Method) -> dict[str, Estimate]:
    """Return the costs: medians of seconds over shards, means of bytes over images, peak memory."""
    found = {}
    stages: dict[str, dict[tuple[int, int], float]] = {}
    for seed, run in enumerate(method.runs):
        for stage, shards in run.seconds().items():
            stages.setdefault(stage, {}).update({(seed, n): s for n, s in shards.items()})
    for stage in [stage for stage in STAGES if stage in stages]:
        found[f"seconds_{stage}"] = estimate(list(stages[stage].values()), "median")
    parts = [own for stage, own in stages.items() if stage in _MAIN_STAGES]
    if parts:
        shared = [n for n in parts[0] if all(n in own for own in parts)]
        found["seconds"] = estimate([sum(own[n] for own in parts) for n in shared], "median")
    for where in ("host", "gpu"):
        peaks = [p for run in method.runs if (p := run.peak(where)) is not None]
        if peaks:
            value = max(peaks) / 2**30
            found[f"memory_{where}"] = Estimate(value, math.nan, math.nan, len(peaks))
    for key, tables in (("bytes", RENDERED_FROM), ("bytes_all", None)):
        sizes = [pair for run in method.runs for pair in run.bytes_of(tables)]
        found[key] = ratio([size / 1e6 for size, _ in sizes], [images for _, images in sizes])
    return found


def clocks_of(method: Method, other: Method | None) -> dict[str, Estimate]:
    """Return the medians of what was measured in turn, and of the ratios on each shard.

    Args:
        method: The method.
        other: Its reference method, if there is one.
    """
    own, theirs = _clocked(method), _clocked(other) if other else {}
    if not own:
        return {}
    found: dict[str, list[float]] = {}
    for shard, clocks in own.items():
        for key, value in clocks.items():
            found.setdefault(f"turn_{key}", []).append(value)
            if base := theirs.get(shard, {}).get(key):
                found.setdefault(f"turn_{key}_ratio", []).append(value / base)
    return {key: estimate(found[key], "median") for key in HEADINGS if key in found}


def _clocked(method: Method) -> dict[tuple[int, tuple[str, ...]], dict[str, float]]:
    """Return what was measured in turn, with sums over stages, by seed and images of a shard."""
    found = {}
    for seed, run in enumerate(method.runs):
        for ids, clocks in run.clocks().items():
            sums = dict(clocks)
            for clock in CLOCKS:
                spent = {s: clocks[f"{clock}_{s}"] for s in STAGES if f"{clock}_{s}" in clocks}
                sums[clock] = sum(spent[stage] for stage in _MAIN_STAGES if stage in spent)
                sums[f"{clock}_all"] = sum(spent.values())
            found[seed, ids] = sums
    return found
