"""Measures of edits that papers use and that need more than the tables of a run.

python -m dhr_batch.benchmarks.editing RUN --attributes CelebAMask-HQ-attribute-anno.txt
python -m dhr_batch.benchmarks.editing RUN --consistency age=10 [--images N]

--attributes prints editing FIDs: the Frechet distance of edited pictures of the photographs without
an attribute to the photographs that show it, beside that of the unedited pictures. The run needs
features (--set measure.features=st_alex, or inception for FID), and its photographs the names that
they have in the file.

--consistency prints the latent editing consistency of the run's embedder, which embeds each edited
picture again. The generator is not refined, and the edit moves all rows, as published.

Identity and the achieved pose over strengths, background PSNR and side effects need no command of
their own: `dhr-batch report RUN` and `dhr-batch bench` show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from dhr_batch.benchmarks.machine import json_option, write_json
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.markdown import table_lines

if TYPE_CHECKING:
    from dhr_batch.pipeline.runs.results import Run
    from dhr_batch.pipeline.stats.set_distances import EditingDistance

# The attribute that positive strengths of an edit bring, and whether they bring it or remove it.
ATTRIBUTES = {
    "smile": ("Smiling", True),
    "smile_open": ("Smiling", True),
    "smile_closed": ("Smiling", True),
    "mouth_open": ("Mouth_Slightly_Open", True),
    "age": ("Young", False),
    "gender": ("Male", True),
    "glasses": ("Eyeglasses", True),
    "beard": ("No_Beard", False),
}
# CelebAMask-HQ's own script numbers the 2,824 images of the test split anew, so that the attributes
# are those of other images. As many images of the whole dataset have larger numbers among them.
_ENOUGH = 100


def labelled(ids: Sequence[str], attribute: str, file: str) -> dict[str, bool]:
    """Return whether each image shows an attribute.

    Args:
        ids: Ids of the images, whose last part is the name of a file.
        attribute: The attribute.
        file: The attribute file of CelebAMask-HQ or CelebA.

    Raises:
        DatasetError: The file has no such attribute, or a line is malformed.
        Refused: The file lacks an image, or the images were numbered anew.
    """
    from dhr_batch.pipeline.datasets import celebahq
    from dhr_batch.pipeline.storage import locations

    text = locations.fetch(file).decode("utf-8-sig", "replace")
    known = celebahq.parse_attribute(text, file, attribute)
    stems = {image_id: PurePosixPath(image_id).stem for image_id in ids}
    missing = [image_id for image_id, stem in stems.items() if stem not in known]
    if missing:
        raise Refused(
            file,
            f"it has no line for {missing[0]!r} and {len(missing) - 1} more of {len(ids)} images",
            "use the file of this dataset, whose names the images must have kept",
        )
    numbers = [int(stem) for stem in stems.values() if stem.isdecimal()]
    if len(numbers) > _ENOUGH and max(numbers) < celebahq.TEST_IMAGES < len(known) <= 30_000:
        raise Refused(
            file,
            f"all numbers of the {len(ids)} images are below {celebahq.TEST_IMAGES}, so they were "
            "probably numbered anew when the test split was copied",
            "run on the folder CelebAMask-HQ itself, with its mapping file",
        )
    return {image_id: known[stem] for image_id, stem in stems.items()}


def editing_fid(run: Run, file: str) -> list[dict[str, Any]]:
    """Return the editing FIDs of all edits whose attribute is known, by edit and strength.

    Edits whose strengths are targets are left out.

    Raises:
        Refused: The run has no features, or no edit with a known attribute.
    """
    from dhr_batch.pipeline.stats.curves import strengths_of
    from dhr_batch.pipeline.stats.set_distances import editing_distances
    from dhr_batch.stages import registry
    from dhr_batch.stages.record import START, edit_stage

    if not run.parts.table("features"):
        raise Refused(
            run.storage.place, "it has no features", "run again with measure.features=st_alex"
        )
    metrics = run.table("metrics", ["stage", "metric"]).to_pandas()
    # The sign of a target does not say whether it brings an attribute: `beard=-20` does.
    targets = {m.removeprefix(START) for m in metrics["metric"].unique() if m.startswith(START)}
    edits = {
        name: strengths
        for name, strengths in strengths_of(metrics).items()
        if name in ATTRIBUTES and name not in targets
    }
    if not edits:
        raise Refused(
            run.storage.place,
            "it has no edit with a known attribute",
            f"choose edits from: {', '.join(ATTRIBUTES)}",
        )
    generator = registry.label(run.stored.settings.generator)
    rows = []
    for name, strengths in edits.items():
        attribute, brings = ATTRIBUTES[name]
        shown = labelled(run.ids, attribute, file)
        for strength in strengths:
            wanted = brings == (strength > 0)
            showing = [image_id for image_id, has in shown.items() if has == wanted]
            without = [image_id for image_id, has in shown.items() if has != wanted]
            stages = ["aligned", "refined", edit_stage(name, strength)]
            found = editing_distances(run.parts, generator, stages, without, showing)
            for metric in dict.fromkeys(distance.metric for distance in found):
                of = [distance for distance in found if distance.metric == metric]
                about = {"edit": name, "strength": strength, "attribute": attribute}
                rows.append(about | {"with": wanted} | _cells(of))
    return rows


def _cells(distances: Sequence[EditingDistance]) -> dict[str, Any]:
    """Return the distances of one extractor: those of the photographs, refined and edited."""
    kept = ("metric", "pictures", "photographs", "model")
    cells = {name: asdict(distances[0])[name] for name in kept}
    names = {"aligned": "unedited", "refined": "refined"}
    return cells | {names.get(d.stage, "edited"): d.value for d in distances}


def consistency(run: Run, text: str, images: int) -> list[float]:
    """Return the distances of `edit_consistency` for the first images of a run.

    Args:
        run: The run.
        text: The edit, such as `age=10`.
        images: Number of images.

    Raises:
        Refused: The edit cannot be undone, because it does not only move the code.
    """
    import torch

    from dhr_batch.stages import registry
    from dhr_batch.stages.edit.directions import Directions
    from dhr_batch.stages.measure.consistency import edit_consistency

    context = run.networks
    chosen = {"edits": [{"direction": text}], "rows": "all"}
    stage = Directions(Directions.Options.model_validate(chosen))
    stage.setup(context)
    if len(stage.moves) != 1:
        raise Refused(f"--consistency {text}", "it has no strength", f"write {text}=10")
    move, generator = stage.moves[0], stage.generator
    settings = run.stored.settings.section("embed")
    member = registry.lookup("embed", settings["name"])
    embedder = member(member.Options(**settings))
    embedder.setup(context)

    def moved(codes: torch.Tensor, sign: int) -> torch.Tensor:
        after, styles = move.edit.apply(codes, sign * move.strength)
        if styles or move.edit.absolute:
            raise Refused(f"--consistency {text}", "it cannot be undone", "give a direction")
        return after

    def render(codes: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return generator.synthesize(codes).clamp(-1, 1)

    found = []
    for image_id in run.ids[:images]:
        codes = torch.from_numpy(np.array(run.latents[image_id])[None]).to(context.device)
        distance = edit_consistency(
            codes,
            embedder.embed,
            render,
            lambda w: moved(w, 1),
            lambda w: moved(w, -1),
            generator.live_rows,
        )
        found.append(float(distance))
    return found


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    titles = ["edit", "compared with", "metric", "pictures", "photographs"]
    values = ["unedited", "refined", "edited"]
    cells = (
        [
            f"{row['edit']} {row['strength']:+g}",
            f"{row['attribute']}{'' if row['with'] else ' (without)'}",
            row["metric"],
            str(row["pictures"]),
            str(row["photographs"]),
            *(f"{row[v]:.3f}" if v in row else "" for v in values),
        ]
        for row in rows
    )
    return table_lines([*titles, *values], cells)


@click.command(cls=Command, help=__doc__)
@click.argument("place", metavar="RUN")
@click.option("--attributes", metavar="FILE", help="The attribute file, for editing FIDs.")
@click.option("--consistency", "edits", multiple=True, metavar="EDIT=STRENGTH",
              help="An edit, for the latent editing consistency. May be repeated.")  # fmt: skip
@click.option("--images", type=click.IntRange(1), default=100, show_default=True,
              help="Number of images for --consistency.")  # fmt: skip
@json_option
def main(
    place: str, attributes: str | None, edits: tuple[str, ...], images: int, file: Path | None
) -> None:
    import dhr_batch
    from dhr_batch.stages.measure.consistency import published_mean

    if not (attributes or edits):
        raise Refused("options", "nothing is to be measured", "give --attributes or --consistency")
    run = dhr_batch.open(place)
    rows = editing_fid(run, attributes) if attributes else []
    if rows:
        click.echo("\n".join(_lines(rows)))
    distances = {edit: consistency(run, edit, images) for edit in edits}
    if distances:
        lec = [[e, str(len(d)), f"{published_mean(d):.3f}"] for e, d in distances.items()]
        click.echo("\n".join(table_lines(["edit", "images", "LEC"], lec)))
    write_json({"editing_fid": rows, "consistency": distances}, file)


if __name__ == "__main__":
    main()
