"""The folder of an export: where it may lie, and how it appears."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dhr_batch.pipeline import export_card
from dhr_batch.pipeline.locations import lies_in
from dhr_batch.pipeline.results import Run
from dhr_batch.pipeline.storage import Refused


def resolved(out: Path, run: Run, fresh: bool) -> Path:
    """The absolute folder. Raises Refused for one that an export of this run may not replace."""
    out = out.expanduser().resolve()
    if Path.cwd().is_relative_to(out):
        raise Refused(f"{out} is the current folder or holds it: choose a folder in it with --out")
    if lies_in(str(out), run.storage.address):
        raise Refused(f"{out} lies in the run, which holds tables only: choose another --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    if export_card.run_of(out) != export_card.identity(run.plan):
        raise Refused(
            f"{out} holds something else than an export of this run: choose another --out"
        )
    if not fresh:
        raise Refused(f"{out} holds an export of this run: replace it with --fresh")
    return out


def replace(partial: Path, out: Path) -> None:
    """Between the two moves a kill leaves the earlier export under its temporary name."""
    old = out.parent / f".{out.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
