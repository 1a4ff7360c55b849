"""A small classifier of smiles, trained with and without the edited pictures of a run.

python -m dhr_batch.benchmarks.augmentation RUN... [--person REGEX] [--json FILE]

This illustrates `dhr-batch export`. It is not a measurement: there are few photographs, and the
labels are landmark scores (`score_smile` above the median of the photographs), not judgements of
people. Each photograph is classified by a logistic regression on the pixels of the mouth, which was
trained neither with the photograph nor with edits of it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image

from dhr_batch.benchmarks.machine import json_option, write_json
from dhr_batch.pipeline.cli.export import pattern
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.export import choice
from dhr_batch.pipeline.export.options import Options
from dhr_batch.pipeline.export.pictures import Filters
from dhr_batch.pipeline.export.write import write_export
from dhr_batch.pipeline.markdown import table_lines

SCORE = "score_smile"
# The left, top, right and bottom of the mouth in an FFHQ crop, and its size in pixels for the
# classifier.
_MOUTH, _SIZE = (0.32, 0.6, 0.68, 0.84), (24, 16)
_LEAST = 4


@dataclass(frozen=True)
class Example:
    """A picture with a smile score.

    Attributes:
        image_id: The id of its photograph.
        person: The person that it shows; the id of the photograph if persons are not known.
        edited: Whether it is an edit.
        pixels: The pixels of the mouth, from 0 to 1, float [N].
        score: The smile score.
    """

    image_id: str
    person: str
    edited: bool
    pixels: np.ndarray
    score: float


@dataclass(frozen=True)
class Result:
    """The result of one way of training.

    Attributes:
        name: The kind of training data.
        trained_on: The number of examples, in the mean over the classifiers.
        correct: The number of photographs that were classified correctly.
        photographs: The number of photographs.
        auc: The area under the ROC curve of the photographs.
    """

    name: str
    trained_on: float
    correct: int
    photographs: int
    auc: float


def examples(run: str, folder: Path, person: str | None = None) -> Iterator[Example]:
    """Export a run and yield its edits and photographs that have a smile score.

    Args:
        run: The folder or URL of the run.
        folder: The folder of the export.
        person: A regular expression for the part of an id that names the person.
    """
    options = Options("imagefolder", include=("source",), filters=Filters(), person=person)
    write_export(run, folder, options)
    for line in (folder / "train" / "metadata.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if row.get(SCORE) is None:
            continue
        with Image.open(folder / "train" / row["file_name"]) as image:
            left, top, right, bottom = _MOUTH
            width, height = image.size
            box = (left * width, top * height, right * width, bottom * height)
            mouth = image.convert("L").resize(_SIZE, Image.Resampling.BOX, box)
        image_id = row["image_id"]
        shown = choice.person(image_id, person)
        pixels = np.asarray(mouth, np.float64).ravel() / 255
        yield Example(image_id, shown, row["kind"] == "edit", pixels, row[SCORE])


def distinct(found: Sequence[Example]) -> list[Example]:
    """Return all edits, and each photograph once even if several runs have it."""
    photographs = {e.image_id: e for e in reversed(found) if not e.edited}
    return [e for e in found if e.edited or photographs[e.image_id] is e]


def compare(found: Sequence[Example]) -> list[Result]:
    """Compare classifiers that are trained without and with edits.

    Raises:
        Refused: If there are too few photographs.
    """
    photographs = [e for e in found if not e.edited]
    if (persons := len({e.person for e in photographs})) < _LEAST:
        raise Refused(
            "runs",
            f"the {len(photographs)} photographs with a smile score show {persons} persons: "
            f"{_LEAST} are needed",
            "give more runs, or --person",
        )
    threshold = float(np.median([e.score for e in photographs]))
    sets = {"photographs": photographs, "photographs and edits": found}
    return [_leave_one_out(name, photographs, seen, threshold) for name, seen in sets.items()]


def _leave_one_out(
    name: str, photographs: Sequence[Example], found: Sequence[Example], threshold: float
) -> Result:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    truth, decisions, sizes = [], [], []
    for held_out in photographs:
        seen = training(found, held_out)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        model.fit([e.pixels for e in seen], [e.score > threshold for e in seen])
        truth.append(held_out.score > threshold)
        decisions.append(float(model.decision_function([held_out.pixels])[0]))
        sizes.append(len(seen))
    correct = sum((d > 0) == t for d, t in zip(decisions, truth, strict=True))
    auc = float(roc_auc_score(truth, decisions))
    return Result(name, float(np.mean(sizes)), correct, len(photographs), auc)


def training(found: Sequence[Example], held_out: Example) -> list[Example]:
    """Return the examples that do not show the person of the held-out photograph."""
    return [e for e in found if e.person != held_out.person]


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--person",
    metavar="REGEX",
    callback=pattern,
    help="Part of an image's id that names the person.",
)
@json_option
def main(runs: tuple[str, ...], person: str | None, file: Path | None) -> None:
    """Train a small classifier of smiles with and without edits and print the results."""
    found: list[Example] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(runs):
            found += examples(run, Path(folder, str(number)), person)
    rows = compare(distinct(found))
    click.echo("This is an illustration: few photographs, labels from landmarks.")
    cells = (
        (r.name, f"{r.trained_on:.0f}", f"{r.correct} of {r.photographs}", f"{r.auc:.2f}")
        for r in rows
    )
    click.echo("\n".join(table_lines(["trained on", "examples", "correct", "AUC"], cells)))
    write_json({"rows": [vars(row) for row in rows]}, file)


if __name__ == "__main__":
    main()
