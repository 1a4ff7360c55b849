"""The edits of one photograph: pictures, metrics and notes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dhr_batch.pipeline import notebook
from dhr_batch.pipeline.editing import files
from dhr_batch.pipeline.editing.choice import Choice
from dhr_batch.pipeline.picture_names import edit_labels, picture_file
from dhr_batch.pipeline.tables.rows import own_text, png
from dhr_batch.stages.edit import syntax
from dhr_batch.stages.paste_back import Crop, paste_all
from dhr_batch.stages.record import EditedImage, Record, required

if TYPE_CHECKING:
    import pandas as pd

# The longest sides of pictures of the surroundings of the faces, in pixels: before and after an
# edit, in a strip and in an animation.
_NEAR, _STRIP, _ANIMATION = 1024, 256, 512


@dataclass(frozen=True, repr=False)
class Edited:
    """A photograph and its edits.

    Pictures are PIL images. Those of edits are named by the text of the edit, such as `smile=2` or
    `smile=1+age=10`.

    Attributes:
        name: Name of the photograph.
        photograph: The photograph, upright and in sRGB, uint8 [H, W, 3].
        faces: The record of each edited face, the largest first.
        choice: The pictures that were asked for.
        lost: Why further faces could not be edited.
    """

    name: str
    photograph: np.ndarray
    faces: tuple[Record, ...]
    choice: Choice
    lost: tuple[str, ...] = ()

    @cached_property
    def edits(self) -> dict[str, int]:
        """The place of each edit among the edits of a record, by its text."""
        made = self.faces[0].edits
        return {text: i for i, text in enumerate(self.choice.texts() or map(_text, made))}

    @property
    def chosen(self) -> dict[str, int]:
        """Those of `edits` that are not only part of a sweep."""
        swept = {syntax.joined(terms) for sweep in self.choice.sweeps for terms in sweep}
        swept -= {syntax.joined(terms) for terms in self.choice.edits}
        return {text: i for text, i in self.edits.items() if text not in swept}

    @cached_property
    def pictures(self) -> dict[str, Image.Image]:
        """The whole photograph with each edit of all faces in it."""
        return {text: Image.fromarray(self.whole(i)) for text, i in self.edits.items()}

    @cached_property
    def crops(self) -> list[dict[str, Image.Image]]:
        """The square crops of each face: `source`, `refined` and the edits."""
        return [
            {
                "source": Image.fromarray(required(face.image)),
                "refined": Image.fromarray(required(face.refined)),
                **{text: Image.fromarray(face.edits[i].image) for text, i in self.edits.items()},
            }
            for face in self.faces
        ]

    def values(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the metrics by face, picture and name."""
        return {
            face.image_id: {
                stage: {m.metric: m.value for m in face.metrics if m.stage == stage}
                for stage in dict.fromkeys(m.stage for m in face.metrics)
            }
            for face in self.faces
        }

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """The metrics of a run, with a row per face and picture and a column per metric."""
        import pandas as pd

        rows = {(i, stage): v for i, own in self.values().items() for stage, v in own.items()}
        table = pd.DataFrame.from_dict(rows, orient="index")
        return table.rename_axis(["image_id", "stage"])

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks, such as an edit that was made with less strength than asked for."""
        several = len(self.faces) > 1
        found = (f"{f.image_id}: {n}" if several else n for f in self.faces for n in f.notes)
        return (*dict.fromkeys(found), *self.lost)

    def whole(self, edit: int) -> np.ndarray:
        """Return the photograph with an edit of all faces in it, uint8 [H, W, 3].

        Args:
            edit: Place of the edit among those of a record.
        """
        crops = [
            Crop(required(face.quad), required(face.refined), face.edits[edit].image)
            for face in self.faces
        ]
        return paste_all(self.photograph, crops)

    def near(self, edit: int | None = None, side: int = _NEAR) -> Image.Image:
        """Return the part of the photograph around the faces, before or after an edit.

        Args:
            edit: Place of the edit among those of a record; None for the photograph.
            side: The longest side in pixels. A larger picture is reduced.
        """
        return self._cut(self.photograph if edit is None else self.whole(edit), side)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and content of each file of the photograph.

        For each edit these are the whole photograph with it, the part around the faces before and
        after it, and the crop of each face. Further files are the refined crop of each face, and
        for each sweep a strip and an animation that goes back and forth.
        """
        name, first = self.name, self.faces[0]
        labels = edit_labels((edit.name, edit.strength) for edit in first.edits)
        for i in self.chosen.values():
            edit = first.edits[i]
            label = labels[edit.name, edit.strength]
            whole = self.whole(i)
            content = files.edited_png(whole, edit, name)
            yield picture_file(name, f"{label}.photograph"), content
            pair = files.row([self._cut(pixels, _NEAR) for pixels in (self.photograph, whole)])
            yield picture_file(name, f"{label}.pair"), files.edited_png(pair, edit, name)
            for face in self.faces:
                crop = files.edited_png(face.edits[i].image, edit, name)
                yield picture_file(face.image_id, label), crop
        for face in self.faces:
            refined = required(face.refined)
            text = own_text(refined) | {"Comment": "rendered by dhr-batch"}
            yield picture_file(face.image_id, "refined"), png(refined, text)
        for sweep in self.choice.sweeps:
            places = [self.edits[syntax.joined(terms)] for terms in sweep]
            ends = (first.edits[places[end]] for end in (0, -1))
            label = "_to_".join(labels[edit.name, edit.strength] for edit in ends)
            frames = [self.near(i, _ANIMATION) for i in places]
            small = [frame.copy() for frame in frames]
            for frame in small:
                frame.thumbnail((_STRIP, _STRIP), Image.Resampling.LANCZOS)
            strip = files.row(small, files.labels(sweep))
            yield picture_file(name, label), png(strip, own_text(strip))
            yield picture_file(name, label, "webp"), files.animation(frames)

    def save(self, folder: str | Path) -> list[Path]:
        """Write all pictures to a folder, as the command `edit` does.

        Returns:
            The files (see `files`).

        Raises:
            Refused: Files with these names exist that dhr-batch did not write.
            OSError: A file cannot be written.
        """
        return list(files.write(self.files(), Path(folder)))

    def _cut(self, pixels: np.ndarray, side: int) -> Image.Image:
        quads = np.concatenate([required(face.quad) for face in self.faces])
        size = np.array(pixels.shape[1::-1])
        left, top = np.clip(np.floor(quads.min(0)), 0, size - 1).astype(int)
        right, bottom = np.clip(np.ceil(quads.max(0)), (left + 1, top + 1), size).astype(int)
        image = Image.fromarray(pixels[top:bottom, left:right])
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image

    def __repr__(self) -> str:
        edits = ", ".join(self.edits)
        faces = f"{len(self.faces)} face{'s' if len(self.faces) > 1 else ''}"
        return f"Edited({self.name!r}, {faces}, {edits})"

    def _repr_html_(self) -> str:
        shown = {"photograph": self.near(side=notebook.SIDE)}
        shown |= {text: self.near(i, notebook.SIDE) for text, i in self.edits.items()}
        return notebook.table([shown], self.notes)


def _text(edit: EditedImage) -> str:
    whole = syntax.names_all(edit.name, edit.strength)
    return edit.name if whole else str(syntax.Term(edit.name, edit.strength))
