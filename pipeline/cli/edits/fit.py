"""The command `edits fit`: directions of scores of the generator's own faces."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.pipeline.cli import complete
from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.cli.output import say
from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages import registry
from dhr_batch.stages.edit.direction_files import (
    DirectionError,
    resolve,
    sets_folder,
    shipped,
    shipped_edits,
)

if TYPE_CHECKING:
    import numpy as np

    from dhr_batch.stages.device import Kind
    from dhr_batch.stages.measure.face_scores import Scorer

METHODS = ("best", "ridge", "svm")
RATIO = 0.02


def _rows(_context: object, _parameter: object, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    ends = re.fullmatch("([0-9]{1,2})-([0-9]{1,2})", value)
    if not ends or not int(ends[1]) <= int(ends[2]) < 18:
        raise click.BadParameter(f"{value!r} is not a range of the rows 0-17, such as 0-8")
    return int(ends[1]), int(ends[2])


def known_generator(_context: object, _parameter: object, value: str) -> str:
    """Check the name or the file of a generator, without torch."""
    from dhr_batch.pipeline.planning.config import generator

    return generator(value)


def _known_scorers(
    _context: object, _parameter: object, values: tuple[str, ...]
) -> tuple[str, ...]:
    for value in values:
        registry.check_name("scores", value, "scorer")
    return values


@click.command("fit")
@click.option(
    "--generator",
    callback=known_generator,
    shell_complete=complete.generators,
    default="mobilestylegan-256",
    show_default=True,
    metavar="NAME|FILE",
    help="Generator of the directions.",
)
@click.option(
    "--scorer",
    "scorers",
    callback=_known_scorers,
    multiple=True,
    default=("landmarks",),
    show_default=True,
    metavar="NAME",
    help=f"What scores the faces: {', '.join(registry.names('scores'))}. May be repeated.",
)
@click.option(
    "--score",
    "scores",
    multiple=True,
    metavar="NAME",
    help="A score to fit. May be repeated.  [default: all of the scorers]",
)
@click.option(
    "--method",
    default="best",
    show_default=True,
    type=click.Choice(METHODS),
    help="Linear model: the best on held-out samples, ridge regression, or the support vector "
    "machine of InterFaceGAN as published.",
)
@click.option(
    "--ratio",
    default=RATIO,
    show_default=True,
    type=click.FloatRange(0, 0.5, min_open=True),
    help="Share of the samples with the highest, and of those with the lowest scores, of which "
    "svm learns from 70 % and validates on the others.",
)
@click.option(
    "--condition",
    "conditions",
    multiple=True,
    metavar="NAME",
    help="A score or direction that the directions leave alone, or none. May be repeated.  "
    "[default: for scores of the shipped sets those of these, none for svm and other scores]",
)
@click.option(
    "--rows",
    callback=_rows,
    metavar="A-B",
    help="First and last row of StyleGAN2's code that the directions change, of 0-17.  "
    "[default: all]",
)
@click.option(
    "--samples",
    default=3000,
    show_default=True,
    type=click.IntRange(min=50),
    help="Number of generated faces to fit to.",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of random draws."
)
@click.option(
    "--truncation",
    default=0.8,
    show_default=True,
    type=click.FloatRange(0.1, 1.0),
    help="Truncation of the codes: 1 for no truncation.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of labelled samples, with which an interrupted command continues.  "
    "[default: samples/ in the cache folder]",
)
@click.option(
    "--reuse",
    is_flag=True,
    help="Use the samples in --cache even if they are of another version of the generator.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to write the set to.  [default: the folder of shipped sets]",
)
@cli_options.selected_options("device")
@click.option("--name", help="Name of the set.  [default: the scorers]")
def fit(
    generator: str,
    scorers: tuple[str, ...],
    scores: tuple[str, ...],
    method: str,
    ratio: float,
    conditions: tuple[str, ...],
    rows: tuple[int, int] | None,
    samples: int,
    seed: int,
    truncation: float,
    cache: Path | None,
    reuse: bool,
    out: Path | None,
    device: Kind | None,
    name: str | None,
) -> None:
    """Fit directions of scores to samples of the generator.

    \b
    Examples:
      dhr-batch edits fit --samples 3000 --out my_edits
      dhr-batch edits fit --method svm --score yaw --condition smile --out mine
    """
    import numpy as np

    from dhr_batch.fitting import direction_sets, scoring
    from dhr_batch.fitting import samples as sampling
    from dhr_batch.pipeline.files import require_absent
    from dhr_batch.pipeline.models import catalogue
    from dhr_batch.pipeline.models.weights import weights_of_generator
    from dhr_batch.pipeline.storage.connect import connect
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.device import use

    written_to = out or sets_folder()
    name = name or "-".join(scorer.rpartition(":")[2] for scorer in scorers)
    # These are checked before the samples are computed.
    connect(written_to)
    if out is not None:
        require_absent(out / f"{name}.npz", out / f"{name}.yaml")
    label = registry.label(generator)
    folder = cache or catalogue.home() / "samples" / f"{label}-seed{seed}-truncation{truncation:g}"
    context = Context(
        device=use(kind=device), generator=generator, models=catalogue.path, seed=seed
    )
    judges = scoring.load(context, scorers)
    chosen = scores or default_scores(judges)
    others = _directions(conditions, judges)
    wanted = _conditions(chosen, conditions, judges, method)
    if out is None:
        _check_shipped(name, chosen)

    def report(what: str) -> Any:
        return lambda done, total: click.echo(f"{what} {done}/{total}", err=True)

    if reuse:
        data = sampling.load(folder)
    else:
        data = sampling.collect(context, folder, samples, seed, truncation, report("samples"))
    table = scoring.collect(context, folder, data, judges, report("scored"))
    fits, found = direction_sets.fit_scores(
        data.w, table, chosen, wanted, others, seed, method, ratio
    )
    click.echo(f"fitted on {found} of {len(data.w)} samples with a face; measuring", err=True)
    if rows is not None:
        fits = {
            n: replace(f, array=direction_sets.in_rows(f.array, *rows)) for n, f in fits.items()
        }
    deviations = {n: float(np.nanstd(score)) for n, score in table.items()}
    fits = direction_sets.calibrate(
        context, judges.values(), fits, deviations, seed=seed + 1_000_000
    )
    kinds = {
        score: "landmark" if scorer == "landmarks" else scorer
        for scorer, judge in judges.items()
        for score in judge.names
    }
    fitted_to = ", ".join(dict.fromkeys(kinds[n] for n in fits))
    words = ["dhr-batch", "edits", "fit", "--generator", data.about["generator"]]
    words += [word for scorer in scorers for word in ("--scorer", scorer)]
    words += [word for score in scores for word in ("--score", score)]
    words += ["--method", method]
    words += ["--ratio", f"{ratio:g}"] if method == "svm" else []
    words += [word for condition in conditions for word in ("--condition", condition)]
    words += [] if rows is None else ["--rows", f"{rows[0]}-{rows[1]}"]
    words += ["--samples", str(len(data.w)), "--seed", str(data.about["seed"])]
    words += ["--truncation", f"{data.about['truncation']:g}", "--name", name]
    about = {
        "about": f"Linear edit directions in W, fitted to {fitted_to} scores of generated faces.",
        "command": shlex.join(words),
        "samples": data.about | {"count": len(data.w), "with_scores": found},
        "scorers": {scorer: judge.label for scorer, judge in judges.items()},
        "calibrated_on": {
            "generator": label,
            "generator_weights": weights_of_generator(generator),
            "faces": direction_sets.PROBES,
        },
        "method": next(iter(fits.values())).method,
    }
    described = {n: direction_sets.describe(f, kinds[n]) for n, f in fits.items()}
    arrays = {n: f.array for n, f in fits.items()}
    file = direction_sets.write_set(written_to, name, arrays, described, about)
    click.echo(f"{'score':12s} {'r2':>5s} {'r':>5s}  effect of strength 1, in standard deviations")
    for n, f in fits.items():
        effect = "  ".join(f"{k} {v:+.2f}" for k, v in f.effect.items())
        right = "".join(f"  {k} accuracy {v:.3f}" for k, v in f.accuracy.items())
        say(f"{n:12s} {f.r2:5.2f} {f.correlation:5.2f}  {effect}{right}")
    say(file)


def default_scores(judges: dict[str, Scorer]) -> tuple[str, ...]:
    """Return all scores of scorers; of `landmarks`, those that directions are known for."""
    from dhr_batch.fitting.direction_sets import CONDITIONS

    return tuple(
        score
        for scorer, judge in judges.items()
        for score in (CONDITIONS if scorer == "landmarks" else judge.names)
        if score in judge.names
    )


def _names(judges: dict[str, Scorer]) -> set[str]:
    return {score for judge in judges.values() for score in judge.names}


def _directions(conditions: tuple[str, ...], judges: dict[str, Scorer]) -> dict[str, np.ndarray]:
    """Return the conditions that are directions instead of scores, by name."""
    found = {}
    for condition in conditions:
        if condition in _names(judges) or conditions == ("none",):
            continue
        try:
            direction = resolve(condition)
        except DirectionError as error:
            raise Refused(
                f"--condition {condition}",
                f"it is neither a score of the scorers nor a direction: {error.reason}",
                f"choose a score from {', '.join(sorted(_names(judges)))}, or a direction",
            ) from error
        if direction.array.ndim != 1:
            raise Refused(
                f"--condition {condition}",
                f"its shape is {list(direction.array.shape)}",
                "give a direction of shape [512]",
            )
        found[condition] = direction.array
    return found


def _check_shipped(name: str, chosen: tuple[str, ...]) -> None:
    """Raise Refused if a set would remove shipped directions, or give two of them one name."""
    known = {n: file.stem for n, file in (shipped() | shipped_edits()).items()}
    lost = [n for n, owner in known.items() if owner == name and n not in chosen]
    twice = [n for n in chosen if known.get(n, name) != name]
    if lost or twice:
        why = f"lose {lost[0]!r}" if lost else f"have {twice[0]!r} twice"
        raise Refused(
            f"the set {name!r}",
            f"the shipped sets would {why}",
            "choose another folder with --out",
        )


def _conditions(
    chosen: tuple[str, ...],
    given: tuple[str, ...],
    judges: dict[str, Scorer],
    method: str,
) -> dict[str, tuple[str, ...]]:
    """Return the scores and directions that the direction of each chosen score leaves alone."""
    from dhr_batch.fitting.direction_sets import CONDITIONS

    known = _names(judges)
    if unknown := [score for score in chosen if score not in known]:
        raise Refused(
            f"--score {unknown[0]}",
            "no scorer has this score",
            f"choose from {', '.join(sorted(known))}",
        )
    if given == ("none",) or (method == "svm" and not given):
        return {}
    if given:
        return {score: tuple(c for c in given if c != score) for score in chosen}
    return {score: tuple(c for c in CONDITIONS.get(score, ()) if c in known) for score in chosen}
