"""A small classifier of smiles, trained on photographs, their reconstructions and their edits.

python -m dhr_batch.benchmarks.augmentation RUN... [--person REGEX] [--json FILE]
python -m dhr_batch.benchmarks.augmentation [--faces N] [--tested N] [--json FILE]

This is an example of what an export is for. Labels are landmark scores (`score_smile` above the
median of the edited photographs), not judgements of people, and the classifier is a logistic
regression on the pixels of the mouth. Per seed, one half of the persons is drawn for training, and
the other half is tested, on photographs alone. Training on the unedited reconstructions is the
control: what they change is not due to edits. A photograph and all that was made of it have the
same weight in every training set. Groups are estimates of age and gender by the scorer
`age-gender`.

Without a run, the photographs are faces of the generator, which are embedded and refined in a few
steps, and more of them are only tested. The generator knows how to edit its own faces, so what
edits bring here does not carry over to photographs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from PIL import Image

from dhr_batch.benchmarks.machine import json_option, write_json
from dhr_batch.pipeline.cli.export import pattern
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.export import choice
from dhr_batch.pipeline.export.filters import Filters
from dhr_batch.pipeline.export.options import Options
from dhr_batch.pipeline.export.write import write_export
from dhr_batch.pipeline.markdown import table_lines

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context

SCORE, AGE, GENDER = "score_smile", "score_age", "score_gender"
# The kinds of pictures in each training set.
SETS = {
    "photographs": {"source"},
    "photographs and reconstructions": {"source", "refined"},
    "photographs and edits": {"source", "edit"},
}
SEEDS = 3
# How generated faces are embedded, refined and edited: a quarter of the steps of a run.
SETTINGS: dict[str, Any] = {
    "embed": {"name": "w+", "steps": 10},
    "refine": {"name": "dhr", "steps": 12},
    "edit": {"name": "directions", "edits": [{"direction": "smile", "strengths": [-2, 2]}]},
}
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
        kind: `source` (the photograph), `refined` (its reconstruction) or `edit`.
        pixels: The pixels of the mouth, from 0 to 1, float [N].
        scores: The scores of the picture.
    """

    image_id: str
    person: str
    kind: str
    pixels: np.ndarray
    scores: Mapping[str, float]

    @property
    def score(self) -> float:
        """The smile score."""
        return self.scores[SCORE]


@dataclass(frozen=True)
class Result:
    """The result of one training set.

    Attributes:
        name: A key of `SETS`.
        trained_on: The number of examples, in the mean over seeds.
        auc: The area under the ROC curve of the tested photographs for each seed.
        accuracy: The share of tested photographs that are classified correctly, by group, for each
            seed in which the group has photographs.
        tested: The number of tested photographs by group, in the mean over these seeds.
    """

    name: str
    trained_on: float
    auc: list[float]
    accuracy: dict[str, list[float]]
    tested: dict[str, float]


def examples(run: str, folder: Path, person: str | None = None) -> Iterator[Example]:
    """Export a run and yield its pictures that have a smile score.

    Args:
        run: The folder or URL of the run.
        folder: The folder of the export.
        person: A regular expression for the part of an id that names the person.
    """
    options = Options(
        "imagefolder", include=("source", "refined"), filters=Filters(), person=person
    )
    write_export(run, folder, options)
    for line in (folder / "train" / "metadata.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if row.get(SCORE) is None:
            continue
        with Image.open(folder / "train" / row["file_name"]) as image:
            pixels = mouth(image)
        scores = {name: row[name] for name in (SCORE, AGE, GENDER) if row.get(name) is not None}
        shown = choice.person(row["image_id"], person)
        yield Example(row["image_id"], shown, row["kind"], pixels, scores)


def mouth(image: Image.Image) -> np.ndarray:
    """Return the pixels of the mouth in an FFHQ crop, from 0 to 1, float [N]."""
    left, top, right, bottom = _MOUTH
    width, height = image.size
    box = (left * width, top * height, right * width, bottom * height)
    small = image.convert("L").resize(_SIZE, Image.Resampling.BOX, box)
    return np.asarray(small, np.float64).ravel() / 255


def generated(faces: int, tested: int) -> Iterator[Example]:
    """Yield examples of generated faces, and photographs of further ones, which are only tested.

    A face that the detector does not find is left out.

    Args:
        faces: Number of faces that are embedded, refined and edited.
        tested: Number of further faces.
    """
    from dhr_batch.benchmarks import generated_faces
    from dhr_batch.pipeline.models import catalogue
    from dhr_batch.pipeline.planning import config
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.device import use
    from dhr_batch.stages.edit.directions import Directions
    from dhr_batch.stages.record import required

    settings = config.resolve(config.build([{"dataset": "generated"}, SETTINGS]), 0, 1)
    values = settings.model_dump()
    context = Context(
        use(), values["generator"], catalogue.path, aligned=True, refine=values["refine"]
    )
    editor = None
    for record, _ in generated_faces.refined(context, values, faces, seed=0):
        if editor is None:
            editor = Directions(Directions.Options.model_validate(values["edit"]))
            editor.setup(context)
        (done,) = editor.run([record])
        pictures = [("source", required(done.image)), ("refined", required(done.refined))]
        for kind, picture in [*pictures, *(("edit", edit.image) for edit in done.edits)]:
            yield from _scored(context, done.image_id, kind, picture)
    for number, (picture, _) in enumerate(generated_faces.drawn(context, tested, seed=1)):
        yield from _scored(context, f"face-1-{number}", "source", picture)


def _scored(context: Context, name: str, kind: str, picture: np.ndarray) -> Iterator[Example]:
    from dhr_batch.fitting.samples import find_landmarks
    from dhr_batch.stages.networks.faces.identity import Portrait

    points = find_landmarks(context.network("landmarks", "dlib68"), picture)
    if not np.isfinite(points).all():
        return
    portrait = Portrait(picture, points)
    found = [context.network("scores", s).score(portrait) for s in ("landmarks", "age-gender")]
    scores = {f"score_{k}": v for values in found for k, v in values.items()}
    yield Example(name, name, kind, mouth(Image.fromarray(picture)), scores)


def distinct(found: Sequence[Example]) -> list[Example]:
    """Return all pictures, but each photograph once even if several runs have it."""
    photographs = {e.image_id: e for e in reversed(found) if e.kind == "source"}
    return [e for e in found if e.kind != "source" or photographs[e.image_id] is e]


def compare(found: Sequence[Example], seeds: int = SEEDS) -> list[Result]:
    """Compare classifiers that are trained on each of `SETS`.

    Raises:
        Refused: If too few persons were edited.
    """
    photographs = [e for e in found if e.kind == "source"]
    edited = {e.person for e in found if e.kind == "edit"} & {e.person for e in photographs}
    if len(edited) < _LEAST:
        raise Refused(
            "runs",
            f"the {len(photographs)} photographs with a smile score show {len(edited)} persons "
            f"with edits: {_LEAST} are needed",
            "give more runs, or --person",
        )
    known = [e for e in photographs if e.person in edited]
    threshold = float(np.median([e.score for e in known]))
    draws, members = [drawn(known, seed) for seed in range(seeds)], groups(photographs)
    return [_result(name, found, draws, threshold, members) for name in SETS]


def groups(photographs: Sequence[Example]) -> dict[str, list[Example]]:
    """Return photographs by group: all, and those that the estimates of age and gender divide."""
    found = {"all": list(photographs)}
    aged = [e for e in photographs if AGE in e.scores]
    middle = float(np.median([e.scores[AGE] for e in aged])) if aged else 0.0
    found[f"looks younger than {middle:.0f}"] = [e for e in aged if e.scores[AGE] < middle]
    found[f"looks {middle:.0f} or older"] = [e for e in aged if e.scores[AGE] >= middle]
    known = [e for e in photographs if GENDER in e.scores]
    found["looks female"] = [e for e in known if e.scores[GENDER] < 0]
    found["looks male"] = [e for e in known if e.scores[GENDER] >= 0]
    return {name: members for name, members in found.items() if members}


def drawn(photographs: Sequence[Example], seed: int) -> set[str]:
    """Draw half of the persons for training: one of each two whose smiles are neighbours."""
    smiles: dict[str, list[float]] = {}
    for example in photographs:
        smiles.setdefault(example.person, []).append(example.score)
    ordered = sorted(smiles, key=lambda person: (float(np.median(smiles[person])), person))
    pairs = zip(ordered[::2], ordered[1::2], strict=False)
    random = np.random.default_rng(seed)
    return {pair[random.integers(2)] for pair in pairs}


def training(found: Sequence[Example], persons: set[str], kinds: set[str]) -> list[Example]:
    """Return the examples of some kinds that show the persons who were drawn for training."""
    return [e for e in found if e.person in persons and e.kind in kinds]


def _result(
    name: str,
    found: Sequence[Example],
    draws: Sequence[set[str]],
    threshold: float,
    members: Mapping[str, Sequence[Example]],
) -> Result:
    from sklearn.metrics import roc_auc_score

    sizes, aucs = [], []
    accuracy: dict[str, list[float]] = {group: [] for group in members}
    tested: dict[str, list[int]] = {group: [] for group in members}
    for persons in draws:
        seen = training(found, persons, SETS[name])
        model = _fitted(seen, threshold)
        sizes.append(len(seen))
        for group, photographs in members.items():
            held_out = [e for e in photographs if e.person not in persons]
            if not held_out:
                continue
            decisions = model.decision_function([e.pixels for e in held_out])
            truth = [e.score > threshold for e in held_out]
            accuracy[group].append(float(np.mean((decisions > 0) == truth)))
            tested[group].append(len(held_out))
            if group == "all":
                aucs.append(float(roc_auc_score(truth, decisions)))
    counts = {group: mean(of_seeds) for group, of_seeds in tested.items() if of_seeds}
    return Result(name, mean(sizes), aucs, accuracy, counts)


def _fitted(seen: Sequence[Example], threshold: float) -> Any:
    """Return a classifier. All examples of one photograph weigh as much as one photograph."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ids = [e.image_id for e in seen]
    weights = [1 / ids.count(image_id) for image_id in ids]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return model.fit(
        [e.pixels for e in seen],
        [e.score > threshold for e in seen],
        logisticregression__sample_weight=weights,
    )


def table(results: Sequence[Result]) -> list[str]:
    """Return a table of means over seeds, with the smallest and largest value in brackets."""

    def cell(values: Sequence[float]) -> str:
        return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    tested = results[0].tested
    titles = [f"{group}, {count:.0f} photographs" for group, count in tested.items()]
    rows = (
        [r.name, f"{r.trained_on:.0f}", cell(r.auc), *(cell(r.accuracy[g]) for g in tested)]
        for r in results
    )
    return table_lines(["trained on", "examples", "AUC", *titles], rows)


@click.command(cls=Command, help=__doc__)
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--person",
    metavar="REGEX",
    callback=pattern,
    help="Part of an image's id that names the person.",
)
@click.option("--faces", type=click.IntRange(_LEAST), default=40, show_default=True,
              help="Number of generated faces that are edited, without a run.")  # fmt: skip
@click.option("--tested", type=click.IntRange(0), default=300, show_default=True,
              help="Number of further generated faces to test with, without a run.")  # fmt: skip
@json_option
def main(
    runs: tuple[str, ...], person: str | None, faces: int, tested: int, file: Path | None
) -> None:
    found: list[Example] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(runs):
            found += examples(run, Path(folder, str(number)), person)
    if not runs:
        found = list(generated(faces, tested))
    results = compare(distinct(found))
    what = "photographs" if runs else "generated faces"
    click.echo(f"An example on {what}, labels from landmarks: means of {SEEDS} seeds, and ranges.")
    click.echo("\n".join(table(results)))
    write_json({"rows": [vars(result) for result in results]}, file)


if __name__ == "__main__":
    main()
