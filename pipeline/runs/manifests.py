"""What the driver keeps of a manifest: a run may have hundreds of thousands, of kilobytes each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Counts = tuple[tuple[str, int], ...]


class Finished(NamedTuple):
    """A committed shard. ok, quarantined: images. errors: of these by class; rows: by table."""

    ok: int
    quarantined: int
    attempts: int
    errors: Counts
    rows: Counts

    @property
    def images(self) -> int:
        return self.ok + self.quarantined


class Alike:
    """Makes them, with one copy of what many have in common."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def finished(self, manifest: Mapping[str, Any]) -> Finished:
        rows = {table: facts.get("rows", 0) for table, facts in manifest.get("files", {}).items()}
        made = Finished(
            ok=manifest.get("ok", 0),
            quarantined=manifest.get("quarantined", 0),
            attempts=manifest.get("attempts", 1),
            errors=self._one(tuple(sorted(manifest.get("errors", {}).items()))),
            rows=self._one(tuple(rows.items())),
        )
        return self._one(made)

    def _one(self, value: Any) -> Any:
        return self._known.setdefault(value, value)


def total(counts: Iterable[Counts]) -> Counter[str]:
    """Sums by name."""
    found: Counter[str] = Counter()
    for pairs in counts:
        for name, count in pairs:
            found[name] += count
    return found
