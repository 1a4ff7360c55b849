"""Measure how close renders are to the aligned photograph, and what an edit changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dhr_batch.stages import registry
from dhr_batch.stages.base import Stage
from dhr_batch.stages.context import Context
from dhr_batch.stages.measure.face_scores import LandmarkScores
from dhr_batch.stages.measure.metrics import (
    Part,
    cosine,
    parts_of,
    perceptual_distance,
    pixel_metrics,
    pixel_values,
    shrink,
    shrink_mask,
    weights_of,
)
from dhr_batch.stages.measure.realism import realism
from dhr_batch.stages.measure.truth import (
    at_size,
    hide_occluder,
    latent_values,
    mask_values,
    truth_parts,
)
from dhr_batch.stages.networks.faces.identity import Portrait
from dhr_batch.stages.networks.transfers import to_device
from dhr_batch.stages.options.measure import StandardOptions
from dhr_batch.stages.record import START, TRUTH, Feature, Metric, Record, edit_stage, required
from dhr_batch.stages.tensors import to_unit

if TYPE_CHECKING:
    from dhr_batch.stages.measure.face_scores import Scorer
    from dhr_batch.stages.networks.faces.dlib_face import Landmarks68
    from dhr_batch.stages.networks.faces.identity import Identity
    from dhr_batch.stages.networks.features import Extractor
    from dhr_batch.stages.networks.perceptual import PackageLPIPS, Perceptual

RECONSTRUCTIONS = ("inverted", "refined")


class Standard(Stage):
    """`standard`: pixel, perceptual and identity metrics, landmark scores and effects of edits.

    There are rows for the stages ``inverted``, ``refined`` and ``edit:<name>:<strength>``:

    - Pixel and perceptual metrics compare with the aligned source: the whole picture and, with the
      suffixes ``_in`` and ``_out``, its in-domain and out-of-domain part. They compare at `size`
      px; reconstructions of larger pictures also at full size, such as ``psnr_1024_in``.
    - ``change_in`` and ``change_out`` compare an edit with the refined picture.
    - ``background_psnr``, ``background_psnr_refined`` and ``ghost`` of an edit whose mask and
      feature follow its motion are described in `contours`. There, ``_in`` and ``_out`` are still
      the parts of the unedited picture: after the head has moved, ``_out`` holds a part of it.
    - ``realism`` says how natural the mouth looks (`realism.realism`), if there are landmarks.
    - ``start_<edit>`` of the refined picture is `EditedImage.start`, if strengths are targets.
    - ``score_<name>`` (`face_scores.Scorer`) exists for the stage ``source`` as well. The scores of
      an edited picture are also in `EditedImage.effect`.
    - ``identity_<network>_cosine`` is the cosine of the descriptors of source and render, each
      cropped as its network requires (`networks.faces.identity`). For dlib, there is also the
      Euclidean distance ``identity_dlib_distance``, which is below 0.6 for the same person.
    - ``truth_<name>`` compares with the ground truth of a synthetic picture (`truth`).

    The landmarks of all pictures of a record are searched in the face box of the source. The
    pictures are aligned alike, and another box would move the landmarks. If a network finds no face
    in a picture, its rows are missing and the record gets a note.

    Features are vectors of whole pictures at full size. The report compares them as sets.
    """

    family = "measure"
    needs = frozenset({"image", "inverted", "refined", "mask"})
    gives = frozenset({"metrics", "features"})

    Options = StandardOptions

    def models(self, aligned: bool) -> set[str]:
        unused = set(self.options.scores).difference(self.options.scorers)
        lists = (registry.MODELS.get(("scores", name), ()) for name in unused)
        return super().models(aligned).difference(*lists)

    def setup(self, context: Context) -> None:
        """Load the networks.

        Raises:
            ValueError: Two scorers give a score of the same name.
        """
        super().setup(context)
        options = self.options
        self.perceptual: list[Perceptual | PackageLPIPS] = [
            context.network("lpips" if name in registry.TABLE["lpips"] else "perceptual", name)
            for name in options.perceptual
        ]
        self.identity: dict[str, Identity] = {
            name: context.network("identity", name) for name in options.identity
        }
        self.extractors: dict[str, Extractor] = {
            name: context.network("features", name) for name in options.features
        }
        self.landmarks: Landmarks68 | None = None
        if options.landmarks != "none":
            self.landmarks = context.network("landmarks", options.landmarks)
        self.scorers: dict[str, Scorer] = {n: context.network("scores", n) for n in options.scorers}
        _check_names(self.scorers)
        self.generator_label = f"generator={_model_label(registry.label(context.generator))}"

    def process(self, records: Sequence[Record]) -> list[Record]:
        return [self._measure(record) for record in self.counted(records)]

    def _measure(self, record: Record) -> Record:
        source = required(record.image)
        renders = {"inverted": required(record.inverted), "refined": required(record.refined)}
        renders |= {edit_stage(edit.name, edit.strength): edit.image for edit in record.edits}
        pictures = {"source": source, **renders}
        small = {stage: shrink(image, self.options.size) for stage, image in pictures.items()}
        rows = self._image_rows(pictures, small, required(record.mask)) + self._truth_rows(record)
        starts = {START + edit.name: edit.start for edit in record.edits if edit.start is not None}
        rows += _rows("refined", starts, self.generator_label)
        for edit in record.edits:
            stage = edit_stage(edit.name, edit.strength)
            rows += _rows(stage, edit.contours, self.generator_label)

        missing: dict[str, list[str]] = {}
        portraits = self._portraits(pictures)
        effects: dict[str, dict[str, float]] = {}
        for name, scorer in self.scorers.items():
            for stage, values in _scores(name, scorer, portraits, missing).items():
                named = {f"score_{score}": value for score, value in values.items()}
                rows += _rows(stage, named, scorer.label + self._suffix(stage))
                effects.setdefault(stage, {}).update(values)
        for name, network in self.identity.items():
            rows += self._identity_rows(name, network, portraits, missing)
        rows += self._realism_rows(small, portraits, missing)
        notes = [
            f"measure: no face found in {stage}: no {', '.join(what)}"
            for stage, what in missing.items()
        ]
        return replace(
            record,
            metrics=(*record.metrics, *rows),
            features=(*record.features, *self._features(pictures)),
            edits=tuple(
                replace(e, effect=effects.get(edit_stage(e.name, e.strength), e.effect))
                for e in record.edits
            ),
            notes=(*record.notes, *notes),
        )

    def _truth_rows(self, record: Record) -> list[Metric]:
        if record.truth is None:
            return []
        truth = at_size(record.truth, min(self.options.size, len(required(record.mask))))
        values = mask_values(shrink_mask(required(record.mask), len(truth.face)), truth)
        generator = self.context.network("generator", self.context.generator)
        values |= latent_values(required(record.latent), truth, generator)
        renders = {s: hide_occluder(required(getattr(record, s)), truth) for s in RECONSTRUCTIONS}
        rows = self._rows_at(truth.clean, renders, truth_parts(truth), False)
        kept = ("psnr", *(net.name for net in self.perceptual))
        rows = [row for row in rows if row.metric in kept]
        rows += _rows("inverted", values, self.generator_label)
        return [replace(row, metric=TRUTH + row.metric) for row in rows]

    def _suffix(self, stage: str) -> str:
        return "" if stage == "source" else f"; {self.generator_label}"

    def _image_rows(
        self,
        pictures: Mapping[str, np.ndarray],
        small: Mapping[str, np.ndarray],
        mask: np.ndarray,
    ) -> list[Metric]:
        """Compare the pictures of all stages with the source; `small` has at most `size` px."""
        source, size = pictures["source"], self.options.size
        native = source.shape[0]
        renders = {stage: image for stage, image in small.items() if stage != "source"}
        parts = parts_of(shrink_mask(mask, size))
        rows = self._rows_at(small["source"], renders, parts, native > size)
        if native > size:
            # An edit is not meant to equal the source, so one size is enough for it.
            full = {stage: pictures[stage] for stage in RECONSTRUCTIONS}
            parts = {f"_{native}{part}": where for part, where in parts_of(mask).items()}
            rows += self._rows_at(source, full, parts, True)
        return rows

    def _rows_at(
        self,
        source: np.ndarray,
        renders: Mapping[str, np.ndarray],
        parts: Mapping[str, Part],
        say_size: bool,
    ) -> list[Metric]:
        if not parts:
            return []
        maker = self.generator_label + (f"; at {source.shape[0]} px" if say_size else "")
        pixels, distances = self._values(source, renders, parts)
        rows = []
        for stage, values in zip(renders, pixels, strict=True):
            named = pixel_metrics(values, parts)
            if stage in RECONSTRUCTIONS:
                named = {k: v for k, v in named.items() if not k.startswith("change")}
            rows += _rows(stage, named, maker)
        for net, of_stages in zip(self.perceptual, distances, strict=True):
            for stage, of_parts in zip(renders, of_stages.tolist(), strict=True):
                named = {net.name + part: v for part, v in zip(parts, of_parts, strict=True)}
                rows += _rows(stage, named, f"{_model_label(net.name)}; {maker}")
        return rows

    @torch.inference_mode()
    def _values(
        self,
        source: np.ndarray,
        renders: Mapping[str, np.ndarray],
        parts: Mapping[str, Part],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute metrics on the device, with one copy to it and one back.

        Returns:
            `pixel_values` of the pictures, [N, P, 4], and their perceptual distances in each
            network, [networks, N, P].
        """
        device = self.context.device
        stacked = torch.from_numpy(np.stack([source, *renders.values()]))
        pictures = to_device(stacked, device)
        masks = to_device(torch.from_numpy(weights_of(parts, source.shape[:2])), device)
        before = list(renders).index("refined")
        pixels = pixel_values(pictures[:1], pictures[1:], before, masks)
        weights = [
            None if part is None else masks[i : i + 1, None].float()
            for i, part in enumerate(parts.values())
        ]
        distances = []
        for net in self.perceptual:
            target = net.features(to_unit(pictures[:1]))
            # One picture at a time, to save memory.
            for image in pictures[1:].split(1):
                maps = net.maps(to_unit(image), target)
                distances += [perceptual_distance(maps, weight) for weight in weights]
        flat = torch.cat([pixels.flatten(), *(d.to(pixels.dtype) for d in distances)]).cpu().numpy()
        count = pixels.numel()
        shape = (len(self.perceptual), len(renders), len(parts))
        return flat[:count].reshape(pixels.shape), flat[count:].reshape(shape)

    def _portraits(self, pictures: Mapping[str, np.ndarray]) -> dict[str, Portrait]:
        """Return the picture of each stage with the landmarks of its face, if one is detected."""
        if self.landmarks is None:
            return {stage: Portrait(image) for stage, image in pictures.items()}
        box, found_by = self.landmarks.locate(pictures["source"])
        portraits = {}
        for stage, image in pictures.items():
            # If the detector misses the source (profiles, occluders), it says nothing about the
            # renders either, and the face is assumed where alignment puts it.
            seen = found_by == "ffhq" or stage == "source" or self.landmarks.sees(image)
            portraits[stage] = Portrait(image, self.landmarks.find(image, box) if seen else None)
        return portraits

    def _identity_rows(
        self,
        name: str,
        network: Identity,
        portraits: Mapping[str, Portrait],
        missing: dict[str, list[str]],
    ) -> list[Metric]:
        descriptors = network.describe(list(portraits.values()))
        found = dict(zip(portraits, descriptors, strict=True))
        expected = found.pop("source")
        if expected is None:
            missing.setdefault("source", []).append(f"identity_{name} of any picture")
            return []
        rows = []
        for stage, descriptor in found.items():
            if descriptor is None:
                missing.setdefault(stage, []).append(f"identity_{name}")
                continue
            values = {f"identity_{name}_cosine": cosine(expected, descriptor)}
            if name == "dlib":
                values["identity_dlib_distance"] = float(np.linalg.norm(expected - descriptor))
            rows += _rows(stage, values, network.label + self._suffix(stage))
        return rows

    def _realism_rows(
        self,
        small: Mapping[str, np.ndarray],
        portraits: Mapping[str, Portrait],
        missing: dict[str, list[str]],
    ) -> list[Metric]:
        if self.landmarks is None:
            return []
        ratio = small["source"].shape[0] / portraits["source"].rgb.shape[0]
        points = {s: p.landmarks * ratio for s, p in portraits.items() if p.landmarks is not None}
        if "source" not in points:
            missing.setdefault("source", []).append("realism of any picture")
            return []
        for stage in portraits:
            if stage not in points:
                missing.setdefault(stage, []).append("realism")
        pictures = np.stack([small[stage] for stage in points])
        found = realism(pictures, np.stack(list(points.values())), self.context.device)
        return [
            Metric(stage, "realism", float(value), LandmarkScores.label + self._suffix(stage))
            for stage, value in zip(list(points)[1:], found, strict=True)
        ]

    def _features(self, pictures: Mapping[str, np.ndarray]) -> list[Feature]:
        return [
            Feature("aligned" if stage == "source" else stage, name, extractor.extract(image))
            for name, extractor in self.extractors.items()
            for stage, image in pictures.items()
        ]


def _scores(
    name: str,
    scorer: Scorer,
    portraits: Mapping[str, Portrait],
    missing: dict[str, list[str]],
) -> dict[str, dict[str, float]]:
    """Return the scores of each stage. A picture without scores is added to `missing`."""
    found = {}
    for stage, portrait in portraits.items():
        values = scorer.score(portrait)
        if values is not None:
            found[stage] = values
        else:
            missing.setdefault(stage, []).append(f"scores_{name}")
    return found


def _check_names(scorers: Mapping[str, Scorer]) -> None:
    owners: dict[str, str] = {}
    for scorer, made in scorers.items():
        for name in made.names:
            if owners.setdefault(name, scorer) != scorer:
                raise ValueError(
                    f"measure.scores: {owners[name]!r} and {scorer!r} both give a score {name!r}; "
                    "leave one of them out"
                )


def _model_label(name: str) -> str:
    return f"{name} (random weights)" if "tiny" in name else name


def _rows(stage: str, values: Mapping[str, float], model: str) -> list[Metric]:
    return [Metric(stage, name, value, model) for name, value in values.items()]
