"""What the driver remembers: what each future stands for, and what went wrong with a shard."""

from __future__ import annotations

from dataclasses import dataclass, field

from dhr_batch.pipeline.plan import Shard


@dataclass(frozen=True)
class Task:
    """What a future stands for: a worker's `join` or `setup` (no shard), or work on a shard.

    position: of the only image asked for, where a shard is given out image by image; -1 while the
    worker is told of it, when no image can be to blame.
    """

    worker: int
    what: str
    shard: Shard | None = None
    attempt: str = ""
    position: int | None = None


@dataclass
class History:
    """What went wrong with a shard. lost: class and message of images that ended a worker."""

    deaths: int = 0
    errors: int = 0
    isolate: bool = False
    lost: dict[str, tuple[str, str]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def describe(shard: Shard) -> str:
    """A shard by its number and first images."""
    names = ", ".join(item.image_id for item in shard.items[:3])
    return f"shard {shard.index} ({names}{', ...' if len(shard.items) > 3 else ''})"
