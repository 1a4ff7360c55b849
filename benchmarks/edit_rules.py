"""Compare the rules by which edits treat the mask, the feature and the rows of the code.

python -m dhr_batch.benchmarks.edit_rules [--faces N] [--seed N] [--json FILE] [--pictures DIR]
python -m dhr_batch.benchmarks.edit_rules --run RUN [--edit yaw --edit smile]

Without --run, the pictures are faces of the generator, embedded and refined as photographs with the
default settings. The truth of an edit is then known: the generator's own edit of the code that made
the face, on the rows of the trunk. It moves the background as well, which the rules `fixed` and
`layers` do not. With --run, the pictures are the photographs of a finished run, without a truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.benchmarks import generated_faces
from dhr_batch.benchmarks.machine import describe, json_option, write_json
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.units import number

if TYPE_CHECKING:
    import numpy as np

    from dhr_batch.stages.context import Context
    from dhr_batch.stages.motion import Motion
    from dhr_batch.stages.record import Record

Row = dict[str, Any]

# The compared rules. `all rows` is that of runs made before there were others.
RULES: dict[str, dict[str, str]] = {
    "all rows": {"rows": "all", "follow": "none"},
    "fixed": {"rows": "trunk", "follow": "none"},
    "warp": {"rows": "trunk", "follow": "warp"},
    "layers": {"rows": "trunk", "follow": "layers"},
}
# The rule that edits other rows than the truth.
OTHER_ROWS = "all rows"
COLUMNS = {
    "truth_psnr": "PSNR to the truth, dB",
    "truth_st_lpips": "ST-LPIPS to the truth",
    "ghost": "ghost of the old contour",
    "background_psnr": "background to the photograph, dB",
    "background_psnr_refined": "background to the refined picture, dB",
    "still_psnr": "beyond what moves, to the photograph, dB",
    "skin_chroma": "change of the skin's colour (a*, b*)",
    "effect": "change of the score",
    "realism": "realism of the mouth",
    "identity": "dlib distance to the photograph",
}


class Compared:
    """Applies the rules to records and measures the results.

    Args:
        context: The generator and the refiner.
        edits: Names of directions.
        strengths: Their strengths.
        perceptual: Name of the perceptual network.
        faces: Whether to measure faces, which needs landmarks.
    """

    def __init__(
        self,
        context: Context,
        edits: tuple[str, ...],
        strengths: tuple[float, ...],
        perceptual: str,
        faces: bool,
    ) -> None:
        from dhr_batch.stages.edit.directions import Directions

        self.context = context
        self.generator = context.network("generator", context.generator)
        self.perceptual = context.network("perceptual", perceptual)
        self.landmarks = context.network("landmarks", "dlib68") if faces else None
        self.identity = context.network("identity", "dlib") if faces else None
        chosen = [{"direction": name, "strengths": strengths} for name in edits]
        self.stages = {
            name: Directions(Directions.Options.model_validate({"edits": chosen} | rule))
            for name, rule in RULES.items()
        }
        for stage in self.stages.values():
            stage.setup(context)

    def rows(self, record: Record, truth: np.ndarray | None, out: Path | None) -> Iterator[Row]:
        """Yield the measurements of a record, one for each edit and rule.

        Args:
            record: The record, as after `refine`, with its photograph.
            truth: The code of the face, [512], or None for a photograph.
            out: Folder for strips of pictures: the refined one, the truth if it is known, and one
                of each rule in the order of `RULES`.
        """
        import numpy as np

        made = {name: stage.run([record])[0] for name, stage in self.stages.items()}
        for done in made.values():
            if done.failure is not None:
                raise RuntimeError(done.failure.message)
        fixed = made["fixed"].edits
        for i, edit in enumerate(fixed):
            code = made["layers"].edits[i].latent
            moved = self._motion(record, code)
            expected = None if truth is None else self._truth(truth, i)
            pictures = {name: done.edits[i].image for name, done in made.items()}
            capped = not np.array_equal(code, edit.latent)
            for name, picture in pictures.items():
                about = {"image": record.image_id, "edit": edit.name, "strength": edit.strength}
                row = about | {"rule": name, "capped": capped}
                other = expected if name != OTHER_ROWS else None
                yield row | self._measured(record, edit.name, picture, other, moved)
            if out is not None:
                known = [] if expected is None else [expected]
                name = f"{record.image_id}.{edit.name}.{edit.strength:g}.png"
                _strip(out / name, [record.refined, *known, *pictures.values()])

    def _truth(self, code: np.ndarray, i: int) -> np.ndarray:
        """Return the generator's own picture of the edit number i, of the rows of the trunk."""
        import torch

        from dhr_batch.stages.tensors import tensor_to_images

        stage = self.stages["fixed"]
        start = self.generator.broadcast(torch.from_numpy(code)[None].to(self.context.device))
        with torch.inference_mode():
            ws = stage.moves[i].step(start, stage.kept).code
            return tensor_to_images(self.generator.synthesize(ws))[0]

    def _motion(self, record: Record, code: np.ndarray) -> Motion:
        """Return the motion of an edit, which no rule has a part in."""
        import torch

        from dhr_batch.stages.edit.scene import at_side, seen
        from dhr_batch.stages.motion import motion
        from dhr_batch.stages.networks.parsers.face_parts import INDEX
        from dhr_batch.stages.record import required
        from dhr_batch.stages.refine.base import Refinement

        refiner, device = self.context.refiner(), self.context.device
        refinement = Refinement.of([record], device)
        embedded, edited = (
            torch.from_numpy(ws[None]).to(device) for ws in (required(record.latent), code)
        )
        with torch.inference_mode():
            delta = refiner.unpacked(refinement).expand(2).delta
            start = refiner.refined_codes(embedded, refinement)
            before, after = seen(self.generator.synthesize(torch.cat([start, edited]), delta))
        person = at_side(required(record.labels) != INDEX["background"])
        return motion(before, after, person)

    def _measured(
        self,
        record: Record,
        edit: str,
        picture: np.ndarray,
        truth: np.ndarray | None,
        moved: Motion,
    ) -> dict[str, float]:
        import numpy as np

        from dhr_batch.stages.measure.contours import contour_metrics
        from dhr_batch.stages.record import required
        from dhr_batch.stages.tensors import images_to_tensor

        refined, source = required(record.refined), required(record.image)
        found = contour_metrics(picture, refined, source, moved)
        found |= _skin(refined, picture, required(record.labels), moved)
        found |= _still(source, picture, moved)
        if truth is not None:
            error = float(np.square(picture.astype(float) - truth).mean())
            found["truth_psnr"] = float(10 * np.log10(255**2 / max(error, 1 / 12)))
            one, other = images_to_tensor([picture, truth], self.context.device).split(1)
            features = self.perceptual.features(other)
            found["truth_st_lpips"] = float(self.perceptual.distance(one, features).item())
        return found | self._face(edit, source, refined, picture)

    def _face(
        self, edit: str, source: np.ndarray, refined: np.ndarray, picture: np.ndarray
    ) -> dict[str, float]:
        """Return what needs landmarks: effect, realism and identity. Empty without a network."""
        import numpy as np

        from dhr_batch.stages.measure.face_scores import effect_score, scores
        from dhr_batch.stages.measure.realism import realism
        from dhr_batch.stages.networks.faces.identity import Portrait

        if self.landmarks is None or self.identity is None:
            return {}
        box = self.landmarks.locate(source)[0]
        portraits = [Portrait(p, self.landmarks.find(p, box)) for p in (source, refined, picture)]
        points = [portrait.landmarks for portrait in portraits if portrait.landmarks is not None]
        if len(points) < 3:
            return {}
        before, after = map(scores, points[1:])
        name = effect_score(edit, {f"score_{name}" for name in before}).removeprefix("score_")
        found = {"effect": after[name] - before[name]} if name in before else {}
        pair = np.stack([source, picture])
        (value,) = realism(pair, np.stack([points[0], points[2]]), self.context.device)
        one, _, other = self.identity.describe(portraits)
        return found | {
            "realism": float(value),
            "identity": float(np.linalg.norm(one - other)),
        }


def _skin(
    refined: np.ndarray, edited: np.ndarray, labels: np.ndarray, moved: Motion
) -> dict[str, float]:
    """Return how far the mean colour (a*, b*) of the skin moves from the refined picture.

    The skin of the edited picture is where the motion brings it.
    """
    import cv2
    import numpy as np

    from dhr_batch.stages.measure.contours import picture_at_side
    from dhr_batch.stages.motion import SIDE, carried
    from dhr_batch.stages.networks.parsers.face_parts import INDEX

    skin = cv2.resize((labels == INDEX["face"]).astype(np.float32), (SIDE, SIDE))
    parts = []
    for picture, where in ((refined, skin), (edited, carried(skin, moved.person))):
        small = picture_at_side(picture)
        lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        if not (where > 0.5).any():
            return {}
        parts.append(lab[where > 0.5][:, 1:].mean(0))
    return {"skin_chroma": float(np.linalg.norm(parts[1] - parts[0]))}


def _still(source: np.ndarray, edited: np.ndarray, moved: Motion) -> dict[str, float]:
    """Return the PSNR to the photograph more than 12 px away from everything that moves."""
    import numpy as np

    from dhr_batch.stages.measure.contours import background, background_psnr, picture_at_side

    moving = np.logical_or(moved.person.any(2), moved.whole.any(2))
    beyond = background(moving, moving)
    value = background_psnr(picture_at_side(edited), picture_at_side(source), beyond)
    return {} if value is None else {"still_psnr": value}


def _strip(path: Path, pictures: list[Any]) -> None:
    import numpy as np
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.hstack(pictures)).save(path)


def of_run(place: str) -> tuple[Context, Iterator[tuple[Record, np.ndarray | None]]]:
    """Return the networks of a finished run, and its records with both pictures."""
    import dhr_batch

    run = dhr_batch.open(place)

    def records() -> Iterator[tuple[Record, np.ndarray | None]]:
        for image_id in run.ids:
            pictures = {k: run.images(k, [image_id])[image_id] for k in ("aligned", "refined")}
            record = run.record(image_id)
            yield replace(record, image=pictures["aligned"], refined=pictures["refined"]), None

    return run.networks, records()


def summary(rows: list[Row]) -> list[Row]:
    """Return the means of each edit and rule, over images and strengths.

    The change of the score counts towards the sign of the strength. Edits that a rule has capped
    because the face was lost are counted, but not in the means.
    """
    found = []
    for edit in dict.fromkeys(row["edit"] for row in rows):
        for rule in RULES:
            chosen = [row for row in rows if (row["edit"], row["rule"]) == (edit, rule)]
            capped = sum(row["capped"] for row in chosen)
            chosen = [row for row in chosen if not row["capped"]]
            line: Row = {"edit": edit, "rule": rule, "pictures": len(chosen), "capped": capped}
            for column in COLUMNS:
                values = [
                    row[column] * (-1 if column == "effect" and row["strength"] < 0 else 1)
                    for row in chosen
                    if column in row
                ]
                line[column] = sum(values) / len(values) if values else None
            found.append(line)
    return found


@click.command(cls=Command, help=__doc__)
@click.option("--faces", type=click.IntRange(1), default=4, show_default=True,
              help="Number of generated faces.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Seed of the generated faces.")  # fmt: skip
@click.option("--preset", help="Preset of the settings, such as tiny.  [default: the default run]")
@click.option("--run", "place", help="Take the photographs of a finished run instead.")
@click.option("--edit", "edits", multiple=True, default=("yaw",), show_default=True,
              help="Direction. May be repeated.")  # fmt: skip
@click.option("--strength", "strengths", type=float, multiple=True, default=(-2.0, 2.0),
              show_default=True, help="Strength. May be repeated.")  # fmt: skip
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path),
              help="Folder for strips: refined, the truth if known, then each rule.")  # fmt: skip
@json_option
def main(
    faces: int,
    seed: int,
    preset: str | None,
    place: str | None,
    edits: tuple[str, ...],
    strengths: tuple[float, ...],
    pictures: Path | None,
    file: Path | None,
) -> None:
    from dhr_batch.pipeline.models import catalogue
    from dhr_batch.pipeline.planning import config
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.device import use

    layers = [{"dataset": "generated"}, *([config.preset(preset)] if preset else [])]
    settings = config.resolve(config.build(layers), 0, 1).model_dump()
    if place:
        context, records = of_run(place)
    else:
        context = Context(
            use(), settings["generator"], catalogue.path, aligned=True, refine=settings["refine"]
        )
        records = generated_faces.refined(context, settings, faces, seed)
    tiny = context.generator == "tiny"
    compared = Compared(
        context, edits, strengths, "tiny" if tiny else "st_lpips_alex", faces=not tiny
    )
    rows: list[Row] = []
    for record, truth in records:
        rows += compared.rows(record, truth, pictures)
    means = summary(rows)
    click.echo(f"means of {len({row['image'] for row in rows})} images, {context.generator}")
    for edit in dict.fromkeys(line["edit"] for line in means):
        lines = [line for line in means if line["edit"] == edit]
        count = f"{edit}: {lines[0]['pictures']} pictures, {lines[0]['capped']} capped"
        click.echo(f"{count:40}" + "".join(f"{line['rule']:>10}" for line in lines))
        for column, title in COLUMNS.items():
            values = [line[column] for line in lines]
            if any(value is not None for value in values):
                shown = ("" if value is None else number(value) for value in values)
                click.echo(f"  {title:38}" + "".join(f"{value:>10}" for value in shown))
    write_json({"machine": describe(), "means": means, "rows": rows}, file)


if __name__ == "__main__":
    main()
