"""Pictures of a run again, and edits that it did not make, from its tables alone."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dhr_batch.pipeline import models
from dhr_batch.pipeline.origin import check_weights
from dhr_batch.pipeline.storage import Refused
from dhr_batch.pipeline.tables import edit_text, png
from dhr_batch.stages.base import Context, Record

if TYPE_CHECKING:
    from dhr_batch.pipeline.results import Run
    from dhr_batch.stages.rerender import Rerender

EditChoice = tuple[str, float]


def parse(text: str) -> EditChoice:
    """`smile=2` as a direction and a strength. Raises Refused."""
    name, equals, number = text.rpartition("=")
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not (name and equals and math.isfinite(strength)):
        raise Refused(f"--edit {text!r} is not of the form NAME=STRENGTH, for instance smile=2")
    return name, strength


def context(run: Run) -> Context:
    """The generator that a run was made with, on a GPU if there is one; other networks not at all.

    Raises Refused where its weights are others now, and ModelMissing where they are not here.
    """
    import torch

    check_weights(run.plan, run.storage.place)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Context(device, run.plan["config"]["generator"], models.path)


def renderer(run: Run, networks: Context, edits: Iterable[EditChoice]) -> Rerender:
    """What makes the pictures of a run's records. Raises Refused for unknown directions."""
    from dhr_batch.stages.direction_files import DirectionError
    from dhr_batch.stages.rerender import Rerender

    try:
        return Rerender(networks, edits)
    except DirectionError as error:
        raise Refused(str(error)) from error


def chosen(run: Run, images: Sequence[str]) -> list[str]:
    """The ids as given. Raises Refused for one that has no rows, naming near ones."""
    known = set(run.ids)
    for image_id in images:
        if image_id not in known:
            near = difflib.get_close_matches(image_id, run.ids, 3, 0.4) or run.ids[:5]
            raise Refused(
                f"{run.storage.place} has no rows of image {image_id!r}; {len(known)} images have, "
                f"such as: {', '.join(near) or 'none'}"
            )
    return list(images)


def pictures(record: Record) -> dict[str, bytes]:
    """PNG files of a rendered record by name, edits with the metadata that a run gives them."""
    files = {
        f"{record.image_id}.{edit.name}.{edit.strength:g}.png": png(edit.image, edit_text(edit))
        for edit in record.edits
    }
    if not files and record.refined is not None:
        files[f"{record.image_id}.refined.png"] = png(record.refined)
    return files


def write(
    run: Run, images: Sequence[str], edits: Sequence[EditChoice], out: Path
) -> Iterator[Path | str]:
    """Write the pictures of images below `out`; yields their paths, and a message for an image
    that could not be rendered. Raises Refused for what `renderer` refuses."""
    make = renderer(run, run.networks, edits)
    for image_id in images:
        try:
            files = pictures(make(run.record(image_id)))
        except (ArithmeticError, LookupError, ValueError) as error:
            yield f"{image_id}: {error.args[0]}"
            continue
        for name, content in files.items():
            path = out / name
            if not path.resolve().is_relative_to(out.resolve()):
                yield f"{image_id}: leads out of {out}, so its pictures are not written"
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            yield path


def beside(run: Run) -> Path:
    """The default folder of pictures: next to a run on a disk, else in the current folder."""
    name = f"{run.storage.name}-render"
    return Path(name) if "://" in run.storage.place else Path(run.storage.place).parent / name
