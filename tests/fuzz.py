"""Damage files of every kind that others write, and check that reading them is bounded.

`python -m dhr_batch.tests.fuzz EXAMPLES [READER]...` prints a line for each reader. A reader may
accept a damaged file or raise the class of error that it promises; anything else is a mistake.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dhr_batch.pipeline.datasets import listing, named, parquet
from dhr_batch.pipeline.datasets.items import DatasetError, Rules, Unreadable
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.planning import config, layers
from dhr_batch.stages.decode import decode
from dhr_batch.stages.edit import direction_files
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.networks.files import checkpoints, weight_files
from dhr_batch.stages.networks.generators import stylegan2_layouts
from dhr_batch.tests.fuzz_seeds import (
    Archive,
    generator_state,
    npy_seeds,
    npz_seeds,
    parquet_seeds,
    pickles,
    pictures,
    plain_pickles,
    safetensors_seeds,
    tar_seeds,
    torch_files,
    yaml_seeds,
)

MOST_SECONDS, MOST_BYTES = 10, 500e6


@dataclass(frozen=True)
class Reader:
    """What reads files, and what they are made of.

    Attributes:
        seeds: Contents to damage.
        suffix: Of the file.
        read: Reads a file.
        errors: What it may raise.
        wrap: Makes a file of a damaged content.
    """

    seeds: Sequence[bytes]
    suffix: str
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    wrap: Callable[[bytes], bytes] = bytes


# -------------------------------------------------------------------------------------- readers


def read_settings(file: Path) -> None:
    config.build([layers.read_file(file), {"dataset": "x"}])


def read_model(file: Path) -> None:
    catalogue._read(file, time.monotonic_ns())


def read_listed(file: Path) -> None:
    rules = Rules(frozenset({".png"}))
    for item in listing.scan(str(file), rules).items:
        listing.read_bytes(item)
    parquet._kept.cache_clear()


def read_ids(file: Path) -> None:
    for name in ("id", "label"):
        listing.scan(str(file), Rules(frozenset({".png"}), id_column=name))


DIRECTION, NUMPY = Archive(torch.ones(2, 512)), Archive(np.ones(512, np.float32))
GENERATOR = Archive({"g_ema": generator_state(), "latent_avg": torch.ones(512)})
WEIGHTS = Archive(pickles()[0])
READERS: dict[str, Reader] = {
    "settings": Reader(yaml_seeds(), ".yaml", read_settings, (Refused,)),
    "dataset": Reader(yaml_seeds(), ".yaml", lambda f: named.find(f), (DatasetError,)),
    "model": Reader(yaml_seeds(), ".yaml", read_model, (Refused,)),
    "tar": Reader(tar_seeds(), ".tar", read_listed, (DatasetError, Unreadable)),
    "parquet ids": Reader(parquet_seeds()[:2], ".parquet", read_ids, (DatasetError,)),
    "parquet": Reader(parquet_seeds(), ".parquet", read_listed, (DatasetError, Unreadable)),
    **{
        name: Reader(
            seeds,
            suffix,
            lambda f: direction_files.read(str(f)),
            (direction_files.DirectionError,),
            wrap,
        )
        for name, seeds, suffix, wrap in (
            ("npy", npy_seeds(), ".npy", bytes),
            ("npz", npz_seeds(), ".npz", bytes),
            ("direction", DIRECTION.seeds, ".pt", DIRECTION.wrap),
            ("direction of numpy", NUMPY.seeds, ".pt", NUMPY.wrap),
        )
    },
    "checkpoint": Reader(
        GENERATOR.seeds,
        ".pt",
        stylegan2_layouts.read_checkpoint,
        (checkpoints.CheckpointError, stylegan2_layouts.LayoutError),
        GENERATOR.wrap,
    ),
    **{
        name: Reader(seeds, ".pt", checkpoints.read, (checkpoints.CheckpointError,))
        for name, seeds in (("file of torch", torch_files()), ("pickle", plain_pickles()))
    },
    "weights": Reader(WEIGHTS.seeds, ".pt", weight_files.read, (ValueError,), WEIGHTS.wrap),
    "safetensors": Reader(
        safetensors_seeds(),
        ".safetensors",
        stylegan2_layouts.load,
        (stylegan2_layouts.LayoutError,),
    ),
    **{
        name: Reader(seeds, ".bin", lambda f: decode(f.read_bytes()), (ImageError,))
        for name, seeds in pictures().items()
    },
}

# ------------------------------------------------------------------------------------- the fuzz

NUMBERS = [b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\0" * 8, b"9" * 20, b"-1", b"\x80"]
EDITS = st.tuples(
    st.sampled_from(["flip", "insert", "replace", "delete", "cut", "repeat"]),
    st.floats(0, 1, exclude_max=True),
    st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(NUMBERS)),
)


def damaged(content: bytes, edits: Sequence[tuple[str, float, bytes]]) -> bytes:
    """Return a content after some edits, each at a share of its length."""
    found = bytearray(content)
    for kind, share, data in edits:
        at = int(share * len(found))
        if kind == "flip" and found:
            found[at] ^= 1 << data[0] % 8
        elif kind == "insert":
            found[at:at] = data
        elif kind == "replace":
            found[at : at + len(data)] = data
        elif kind == "delete":
            del found[at : at + data[0]]
        elif kind == "cut":
            del found[at:]
        elif len(found) < 100_000:
            found[at:at] = found[at : at + 40 * data[0]]
    return bytes(found)


def fuzz(reader: Reader, examples: int, folder: Path) -> dict[str, float]:
    """Read damaged files. Returns figures; raises what a reader should not raise."""
    counts = {"read": 0, "refused": 0}
    slowest, longest = 0.0, 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(range(len(reader.seeds))), st.lists(EDITS, max_size=4))
    def run(number: int, edits: Any) -> None:
        read(reader.wrap(damaged(reader.seeds[number], edits)))

    def read(content: bytes) -> None:
        nonlocal slowest, longest
        file = folder / f"{time.monotonic_ns()}{reader.suffix}"
        file.write_bytes(content)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
        try:
            reader.read(file)
            counts["read"] += 1
        except reader.errors as error:
            counts["refused"] += 1
            longest = max(longest, len(str(error)))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            file.unlink()
        slowest = max(slowest, time.process_time() - start)

    for seed in reader.seeds:
        read(reader.wrap(seed))
    assert counts["read"], "no undamaged file is read"
    run()
    assert counts["refused"], "no damaged file is refused"
    assert longest < 4000
    return {**counts, "slowest_s": round(slowest, 3)}


def _peak() -> float:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _too_long(*_: Any) -> None:
    raise AssertionError(f"longer than {MOST_SECONDS} s")


def main(examples: int, names: Sequence[str]) -> None:
    os.environ["DHR_BATCH_HOME"] = tempfile.mkdtemp()
    signal.signal(signal.SIGVTALRM, _too_long)
    for name in names or READERS:
        before = _peak()
        with tempfile.TemporaryDirectory() as folder:
            found = fuzz(READERS[name], examples, Path(folder))
        grown = _peak() - before
        print(json.dumps({"reader": name, **found, "grown_mb": round(grown / 1e6)}), flush=True)
        assert grown < MOST_BYTES, name


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
