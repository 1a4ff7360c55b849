"""Single bits of a finished run are flipped: nothing that is shown or exported changes in silence.

The plan, the manifests, the tables and what describes or shows them; the lease, the status and the
logs are left out, as no row depends on them. Every flip is found by `verify`. Of what reads tables,
each either gives the same as before, or an error that names the file.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dhr_batch
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.export import gather, pictures
from dhr_batch.pipeline.export.filters import Filters
from dhr_batch.pipeline.export.write import _stream
from dhr_batch.pipeline.report import data as report_data
from dhr_batch.pipeline.runs.parts import Parts
from dhr_batch.pipeline.runs.quarantine import quarantined
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.runs.verify import verify
from dhr_batch.tests.faults import driven

SEED, ALL, SOME = 18, 500, 25
LEFT_OUT = ("_state/lease", "_state/status.json", "_state/logs/")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return driven.finished(tmp_path_factory.mktemp("flips"))


def _report(run: Path) -> Any:
    parts = Parts(RunRecords(run))
    data = report_data.load(parts)
    values = {name: value for name, value in vars(data).items() if name != "metrics"}
    return values, data.metrics.to_csv(), list(report_data.rows(parts, data.image_ids))


def _export(run: Path) -> Any:
    opened = dhr_batch.open(run)
    found = gather.gather(opened, ("edit", "refined", "source"), Filters(faces=False))
    rows = [row for key in found.parts for row in _stream(opened, key)]
    return found.images, [repr(vars_of(p)) for p in found.pictures()], rows


def vars_of(picture: pictures.Picture) -> dict[str, Any]:
    return picture.labels() | picture.scores


def _render(run: Path) -> Any:
    """What pictures are rendered from, here and in sweeps."""
    opened = dhr_batch.open(run)
    records = [opened.record(image_id) for image_id in opened.ids]
    return [[(r.latent, r.mask, r.labels, r.feature, r.delta, r.state) for r in records]]


def _open(run: Path) -> Any:
    opened = dhr_batch.open(run)
    return opened.edits.to_json(default_handler=repr), opened.quarantine.to_csv()


READERS = {
    "report": _report,
    "export": _export,
    "render": _render,
    "open": _open,
    "quarantine": quarantined,
}


def digest(value: Any) -> str:
    """A checksum of everything in a value, however it is nested. Arrays count with all numbers."""
    sums = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            part = [pair for item in part.items() for pair in item]
        elif hasattr(part, "__dict__") and not isinstance(part, type):
            part = [repr(type(part)), *vars(part).items()]
        if isinstance(part, list | tuple):
            for piece in part:
                add(piece)
        else:
            sums.update(part.tobytes() if hasattr(part, "tobytes") else repr(part).encode())

    add(value)
    return sums.hexdigest()


def flips(run: Path, count: int) -> Iterator[tuple[str, int]]:
    """Draw files, each kind of which is as likely as others, and a bit in each."""
    draw, kinds = random.Random(SEED), {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        key = path.relative_to(run).as_posix()
        if not key.startswith(LEFT_OUT) and path.stat().st_size:
            kinds.setdefault(key.rpartition("/")[0], []).append(key)
    assert {"", "_state", "_state/shards", "images", "metrics", "report"} <= kinds.keys()
    for _ in range(count):
        key = draw.choice(kinds[draw.choice(sorted(kinds))])
        yield key, draw.randrange(8 * (run / key).stat().st_size)


def found_by_verify(run: Path, key: str) -> bool:
    try:
        return key in {problem.file for problem in verify(run).problems}
    except CommandError as error:
        return key in str(error)


@pytest.mark.parametrize("count", [SOME, pytest.param(ALL, marks=pytest.mark.slow)])
def test_no_flipped_bit_changes_anything_in_silence(run: Path, count: int) -> None:
    before = {name: digest(read(run)) for name, read in READERS.items()}
    assert before == {name: digest(read(run)) for name, read in READERS.items()}
    assert verify(run).problems == []
    silent, unseen, outcomes = [], [], Counter[str]()
    for key, bit in flips(run, count):
        content = (run / key).read_bytes()
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (run / key).write_bytes(changed)
        if not found_by_verify(run, key):
            unseen.append((key, bit))
        for name, read in READERS.items():
            try:
                outcome = "same" if digest(read(run)) == before[name] else "silent"
            except CommandError as error:
                outcome = "named" if key in str(error) else "silent"
            if outcome == "silent":
                silent.append((name, key, bit))
            outcomes[f"{name} {outcome}"] += 1
        (run / key).write_bytes(content)
    print(f"\n{count} flips: {len(silent)} silent, {len(unseen)} not seen by verify; {outcomes}")
    assert silent == []
    assert unseen == []
    assert all(outcomes[f"{name} named"] for name in READERS), "no flip met what it reads"
