"""Calibrate the error thresholds of Domain-Specific Segmentation.

    python -m dhr_batch.fitting.thresholds --images FOLDER [--images FOLDER ...]

The renders are those of the default segmentation: of the mean row of the embedding or, with
``--source embedding``, of the embedding itself.

The published thresholds are for VGG16-LPIPS at 1024 px and an inversion in W of 40 steps. Another
perceptual network, resolution or inversion gives errors of another scale. The rule is: invert clean
portraits, and for each group of classes take the threshold that leaves the share ``--keep`` of
their pixels in-domain. The factor at the mouth is not applied.

The table also shows how much of occluders these thresholds find. Occluders (`stages.occluders`) are
placed over faces and hair, and the occluded picture is compared with the render of the clean one.
This figure is optimistic, because an embedding of the occluded picture would imitate part of the
occluder. ``dhr_batch.benchmarks.synthetic_masks`` embeds the occluded pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.errors import CommandError

GROUPS = ("face", "parts", "other")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True, slots=True)
class SuperpixelErrors:
    """Errors of the superpixels of one picture.

    Attributes:
        errors: Error of each superpixel, [K + 1].
        groups: Index into `GROUPS`, or -1 for none, [K + 1].
        sizes: Size in pixels, [K + 1].
    """

    errors: np.ndarray
    groups: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True, slots=True)
class GroupThreshold:
    """The chosen threshold of one group of classes.

    Attributes:
        clean_in: In-domain share of the pixels of clean portraits.
        occluded_out: Out-of-domain share of the pixels under occluders.
    """

    group: str
    threshold: float
    clean_in: float
    occluded_out: float
    clean_pixels: int
    occluded_pixels: int


def class_groups() -> np.ndarray:
    """Return the index into `GROUPS` of each class, or -1 if always out-of-domain, int [19]."""
    from dhr_batch.stages.segment import FOREIGN_CLASSES, Thresholds

    groups = Thresholds(face=0, parts=1, other=2).of_class().astype(np.int64)
    groups[list(FOREIGN_CLASSES)] = -1
    return groups


def choose(
    clean: Sequence[SuperpixelErrors], occluded: Sequence[SuperpixelErrors], keep: float
) -> list[GroupThreshold]:
    """Choose a threshold for each group by the rule of this module.

    Args:
        clean: Errors of clean portraits.
        occluded: Errors of pictures with occluders.
        keep: Share of clean pixels that stay in-domain, 0..1.

    Raises:
        CommandError: A group has no pixels.
    """
    rows = []
    for index, group in enumerate(GROUPS):
        good, good_size = _pool(clean, index)
        bad, bad_size = _pool(occluded, index)
        if len(good) == 0:
            raise CommandError(
                f"group {group!r}", "it has no pixels in these portraits", "use more of them"
            )
        order = np.argsort(good)
        share = np.cumsum(good_size[order]) / good_size.sum()
        last = min(int(np.searchsorted(share, keep)), len(good) - 1)
        # Errors must be below the threshold to be in-domain.
        threshold = good[order][last] * (1 + 1e-6)
        rows.append(
            GroupThreshold(
                group=group,
                threshold=round(float(threshold), 4),
                clean_in=float(good_size[good < threshold].sum() / good_size.sum()),
                occluded_out=float(bad_size[bad >= threshold].sum() / max(bad_size.sum(), 1)),
                clean_pixels=int(good_size.sum()),
                occluded_pixels=int(bad_size.sum()),
            )
        )
    return rows


def _pool(samples: Sequence[SuperpixelErrors], index: int) -> tuple[np.ndarray, np.ndarray]:
    if not samples:
        return np.zeros(0), np.zeros(0)
    errors = np.concatenate([s.errors for s in samples])
    sizes = np.concatenate([s.sizes for s in samples])
    member = np.concatenate([s.groups for s in samples]) == index
    member &= np.isfinite(errors) & (sizes > 0)
    return errors[member], sizes[member]


def measure(
    stage, records: Sequence, occluders: int
) -> Iterator[tuple[SuperpixelErrors, list[SuperpixelErrors]]]:
    """Measure the superpixel errors of each clean portrait and of copies with occluders.

    Portraits in which the parser finds no face are left out.

    Args:
        stage: A `DomainSpecific` after `setup`, with source `mean_row` or `embedding`. The copies
            have the inversion of their portrait.
        records: Portraits with image, latent and inverted.
        occluders: Number of copies of each portrait.
    """
    from dhr_batch.pipeline.datasets.synthetic import SHARES
    from dhr_batch.stages import segment
    from dhr_batch.stages.occluders import KINDS, occlude

    table = class_groups()

    def sample(record, classes: np.ndarray, covered: np.ndarray) -> SuperpixelErrors:
        (deltas,) = stage.errors([record])
        labels = segment.superpixels(record.image, stage.options.segments)
        sizes = np.bincount(labels.ravel())
        share = np.bincount(labels.ravel(), covered.ravel()) / np.maximum(sizes, 1)
        counts = [np.bincount(labels[classes == g], minlength=len(sizes)) for g in (-1, 0, 1, 2)]
        groups = np.argmax(counts, axis=0) - 1
        return SuperpixelErrors(
            segment.superpixel_errors(deltas, labels), np.where(share > 0.5, groups, -1), sizes
        )

    for number, record in enumerate(records):
        probs = stage.parser.parse(record.image)
        if probs is None:
            continue
        classes = table[probs.argmax(0)]
        everywhere = np.ones(classes.shape, bool)
        rng = np.random.Generator(np.random.PCG64([0, number]))
        pasted = []
        for k in range(occluders):
            share, kind = rng.uniform(*SHARES), KINDS[k % len(KINDS)]
            hidden = occlude(rng, record.image, classes >= 0, share, kind)
            pasted.append(sample(replace(record, image=hidden.image), classes, hidden.mask))
        yield sample(record, classes, everywhere), pasted


def _records(folders: Sequence[Path]):
    from dhr_batch.stages.record import Record

    for folder in folders:
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in SUFFIXES:
                yield Record(file.name, str(file), data=file.read_bytes())


@click.command(cls=Command)
@click.option(
    "--images", "folders", type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True, required=True, help="Folder of portraits without occluders; may be repeated.",
)  # fmt: skip
@click.option("--aligned", is_flag=True, help="The portraits are FFHQ-aligned squares.")
@click.option("--generator", default="mobilestylegan-256", show_default=True)
@click.option("--perceptual", default="st_lpips_alex", show_default=True)
@click.option("--embed", default="w+", show_default=True, help="Name of the embedder.")
@click.option("--steps", type=int, help="Steps of the embedder.  [default: its own]")
@click.option(
    "--source",
    type=click.Choice(["mean_row", "embedding"]),
    default="mean_row",
    show_default=True,
    help="Render whose errors are measured.",
)
@click.option(
    "--error-layers",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Number of the finest layers whose errors are used; 0: all.",
)
@click.option("--parser", default="landmarks", show_default=True)
@click.option("--segments", default=200, show_default=True)
@click.option("--occluders", default=8, show_default=True, help="Number of occluders per portrait.")
@click.option("--keep", default=0.9, show_default=True, help="Share of clean pixels in-domain.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON file of the table."
)
def main(
    folders: tuple[Path, ...], aligned: bool, generator: str, perceptual: str, embed: str,
    steps: int | None, source: str, error_layers: int, parser: str, segments: int,
    occluders: int, keep: float, out: Path | None,
) -> None:  # fmt: skip
    """Print thresholds for `segment.thresholds` in a preset."""
    from dhr_batch.pipeline.models import catalogue
    from dhr_batch.stages import registry
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.device import use

    context = Context(device=use(), generator=generator, models=catalogue.path, aligned=aligned)

    def prepared(family: str, **chosen: Any) -> Any:
        kind = registry.lookup(family, chosen["name"])
        stage = kind(kind.Options(**chosen))
        stage.setup(context)
        return stage

    if parser == "none":
        raise click.BadParameter(
            "thresholds are for parts of a face; choose a parser that finds them",
            param_hint="--parser",
        )
    more = {} if steps is None else {"steps": steps}
    records = list(_records(folders))
    for stage in (prepared("align", name="ffhq"), prepared("embed", name=embed, **more)):
        records = [stage.run([record])[0] for record in records]
    for record in records:
        if record.failure is not None:
            click.echo(f"{record.source} is left out: {record.failure.message}", err=True)
    good = [r for r in records if r.image is not None and r.inverted is not None]
    if not good:
        raise CommandError("no portrait could be aligned and inverted")
    segment = prepared(
        "segment", name="dhr", source=source, error_layers=error_layers or None,
        perceptual=perceptual, parser=parser, segments=segments,
    )  # fmt: skip
    measured = list(measure(segment, good, occluders))
    rows = choose([c for c, _ in measured], [o for _, many in measured for o in many], keep)
    click.echo(f"{perceptual}, {generator}, {embed}, {source}, {len(measured)} portraits")
    click.echo(f"{'group':8}{'threshold':>10}{'clean in':>10}{'occluded out':>14}")
    for row in rows:
        click.echo(
            f"{row.group:8}{row.threshold:10.4f}{row.clean_in:10.1%}{row.occluded_out:14.1%}"
        )
    if out is not None:
        out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
