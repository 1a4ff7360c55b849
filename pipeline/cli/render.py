"""Writes pictures that are rendered again from the tables of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dhr_batch.pipeline.editing.choice import parsed
from dhr_batch.pipeline.errors import CommandError, Refused, StorageError
from dhr_batch.pipeline.picture_names import edit_labels, picture_file
from dhr_batch.pipeline.planning import origin
from dhr_batch.pipeline.planning.plan import check_edits
from dhr_batch.pipeline.runs.render import renderer, write_picture
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import require_outside
from dhr_batch.pipeline.strict import reasons
from dhr_batch.pipeline.tables.rows import edit_text, own_text, png
from dhr_batch.stages.edit import syntax
from dhr_batch.stages.options.edit import DirectionsOptions
from dhr_batch.stages.record import Record
from dhr_batch.stages.registry import MODELS

if TYPE_CHECKING:
    from dhr_batch.pipeline.runs.results import Run
    from dhr_batch.stages.edit.base import EditOptions


def checked(text: str) -> EditOptions:
    """Return the edits that a value of --edit, such as `smile=2`, names for one picture.

    torch is not imported.

    Raises:
        Refused: If it names none.
    """
    settings = syntax.settings([parsed("--edit", text, syntax.parse)])
    try:
        (edit,) = DirectionsOptions.model_validate({"edits": settings}).edits
    except ValidationError as error:
        raise Refused(f"--edit {text!r}", reasons(error, DirectionsOptions)) from error
    check_edits([edit], what="")
    return edit


def models(run: Run, edits: Iterable[EditOptions]) -> set[str]:
    """Return the models that render pictures of a run, and edits of them."""
    networks = run.networks
    generator = MODELS.get(("generator", networks.generator), ())
    render = networks.new_refiner().render_models()
    return {*generator, *render}.union(*(edit.models() for edit in edits))


def pictures(record: Record) -> dict[str, bytes]:
    """Return the PNG files of a rendered record by name, with the same metadata as in runs."""
    labels = edit_labels((edit.name, edit.strength) for edit in record.edits)
    files = {
        picture_file(record.image_id, labels[edit.name, edit.strength]): png(
            edit.image, edit_text(edit) | own_text(edit.image)
        )
        for edit in record.edits
    }
    if not files and record.refined is not None:
        text = own_text(record.refined) | {"Comment": "rendered by dhr-batch"}
        files[picture_file(record.image_id, "refined")] = png(record.refined, text)
    return files


def write_pictures(
    run: Run, images: Sequence[str], edits: Sequence[str], out: Path
) -> Iterator[Path | CommandError]:
    """Write the pictures of images.

    Args:
        run: The run.
        images: The ids of the images.
        edits: The edits of each picture (`syntax.parse`); if empty, the refined pictures are
            written.
        out: The folder to write to.

    Yields:
        The path of each picture, or the error of an image that could not be rendered or a file
        that is not overwritten.

    Raises:
        Refused: If the folder is inside the dataset, or `renderer` refuses.
    """
    folder = connect(out)
    require_outside(folder, origin.inputs(run.storage, run.stored))
    make = renderer(run.networks, edits, run.stored.rules)
    for image_id in images:
        try:
            files = pictures(make(run.record(image_id)))
        except (ArithmeticError, LookupError, ValueError) as error:
            yield CommandError(image_id, str(error.args[0]))
            continue
        for name, content in files.items():
            path = out / name
            if not path.resolve().is_relative_to(out.resolve()):
                why = f"its pictures are not written, as {path} is not below {out}"
                yield CommandError(image_id, why)
                continue
            try:
                written = write_picture(folder, name, content)
            except StorageError:
                raise
            except OSError as error:
                yield CommandError(image_id, f"{path} cannot be written: {error.strerror}")
                continue
            if written:
                yield path
            else:
                yield CommandError(
                    str(path),
                    "it is not overwritten, as dhr-batch did not render it or it was changed since",
                    "move it away, or choose another folder with --out",
                )


def beside(run: Run) -> Path:
    """Return the default folder of pictures: beside a local run, else in the current folder."""
    name = f"{run.storage.name}-render"
    return Path(name) if "://" in run.storage.place else Path(run.storage.place).parent / name
