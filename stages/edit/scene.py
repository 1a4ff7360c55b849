"""Feature layers that follow the motion of an edit.

An edit that moves a contour, such as a turn of the head, moves the in-domain part of the picture
only. If the mask and the out-of-domain feature stay in place, so does the old contour. Here both
follow the motion (`stages.motion`). With the feature layers x and x' of the unedited and of the
edited code, the refined feature F, the soft mask M, and ``W(a)(p) = a(p + flow(p))``, the layer
that follows a flow is

    A(flow) = W(M) x' + W((1 - M) F)

Where the flow is 0 this is the fixed rule, ``M x' + (1 - M) F``, and is computed as such, bit for
bit. Flows below half a pixel of 256 count as 0.

With `warp` the layer is A of the whole flow. With `layers` it consists of the person, which is A of
the flow of the person alone, in front of the background. The background is that of the fixed rule,
except in the hole where the person was. Into this hole, a flow that decreases with the distance
from the person moves the background nearby. Cells that would still show the person there are
interpolated from those around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.motion import SIDE, Motion, motion
from dhr_batch.stages.networks.generators.generator import Delta, Generator
from dhr_batch.stages.networks.transfers import to_device
from dhr_batch.stages.options.edit import Follow
from dhr_batch.stages.tensors import downsample, tensor_to_images

# By how much the hole behind the person exceeds the person, in pixels of `SIDE`.
_HOLE = 4


@dataclass(frozen=True)
class Draft:
    """An edit of one image before the second half of the generator has rendered it.

    Attributes:
        behind: The code of the layers behind the feature layer, [1, L, 512].
        inside: Its feature layer x', [1, C, h, w].
        skip: The image so far, see `Generator.trunk`.
        plain: Its plain render, uint8 [SIDE, SIDE, 3], if anything follows the motion.
        motion: What moves between the plain renders.
    """

    behind: Tensor
    inside: Tensor
    skip: Tensor | None
    plain: np.ndarray | None = None
    motion: Motion | None = None


class Scene:
    """One refined image with a feature, from which edits start.

    Args:
        generator: The generator.
        ws: The code of the refined picture, [1, L, 512].
        delta: Offsets of weights, name -> [1, *shape].
        feature: The refined feature F, [1, C, h, w].
        mask: The soft mask M at the feature layer, [1, 1, h, w].
        person: Where the photograph shows the person, bool [R, R], or None if it is not known.
        follow: What follows the motion of edits.
    """

    def __init__(
        self,
        generator: Generator,
        ws: Tensor,
        delta: Delta,
        feature: Tensor,
        mask: Tensor,
        person: np.ndarray | None,
        follow: Follow,
    ) -> None:
        self.generator, self.delta, self.follow = generator, delta, follow
        self.feature, self.mask = feature, mask
        self._person = at_side(np.zeros((1, 1), bool) if person is None else person)
        self.plain: np.ndarray | None = None
        if follow != "none":
            inside, skip = generator.trunk(ws, delta)
            (self.plain,) = seen(generator.from_feature(inside, ws, delta, skip))

    def drafts(self, edited: Tensor, behind: Tensor, styles: Delta) -> list[Draft]:
        """Begin N edits.

        This takes a forward pass of the trunk, and one of the other half if anything follows the
        motion.

        Args:
            edited: Codes, [N, L, 512].
            behind: Codes for the layers behind the feature layer, [N, L, 512].
            styles: Offsets of styles, `LAYER.style` -> [N, C].
        """
        delta = self._expanded(len(edited)) | dict(styles)
        inside, skip = self.generator.trunk(edited, delta)
        plain: Sequence[np.ndarray | None] = [None] * len(edited)
        if self.plain is not None:
            plain = seen(self.generator.from_feature(inside, behind, delta, skip))
        return [
            Draft(
                behind[i : i + 1],
                inside[i : i + 1],
                None if skip is None else skip[i : i + 1],
                plain[i],
            )
            for i in range(len(edited))
        ]

    def moved(self, draft: Draft) -> Draft:
        """Return a draft with its motion."""
        if self.plain is None or draft.plain is None:
            return draft
        return replace(draft, motion=motion(self.plain, draft.plain, self._person))

    def finish(self, drafts: Sequence[Draft], styles: Delta) -> Tensor:
        """Return the pictures of N drafts, [N, 3, R, R], with one forward pass of the other half.

        Args:
            drafts: The edits, with their motion if anything follows it.
            styles: Their offsets of styles, `LAYER.style` -> [N, C].
        """
        inside = torch.cat([draft.inside for draft in drafts])
        layer = torch.lerp(self.feature, inside, self.mask)
        motions = [draft.motion for draft in drafts if draft.motion is not None]
        if motions:
            layer = self._followed(layer, inside, motions)
        skips = [draft.skip for draft in drafts if draft.skip is not None]
        delta = self._expanded(len(drafts)) | dict(styles)
        return self.generator.from_feature(
            layer,
            torch.cat([draft.behind for draft in drafts]),
            delta,
            torch.cat(skips) if skips else None,
        )

    def _expanded(self, count: int) -> dict[str, Tensor]:
        return {n: value.expand(count, *value.shape[1:]) for n, value in self.delta.items()}

    def _followed(self, fixed: Tensor, inside: Tensor, motions: Sequence[Motion]) -> Tensor:
        size = fixed.shape[-1]

        def cells(name: str) -> Tensor:
            stacked = torch.from_numpy(np.stack([getattr(m, name) for m in motions]))
            maps = to_device(stacked, fixed.device).to(fixed.dtype)
            maps = maps.permute(0, 3, 1, 2) if maps.ndim == 4 else maps[:, None]
            return _resized(maps, size)

        def follow(flow: Tensor) -> Tensor:
            mask = self.mask.expand(len(flow), -1, -1, -1)
            still = (1 - self.mask) * self.feature
            there = _warp(mask, flow) * inside + _warp(still.expand_as(inside), flow)
            return torch.where((flow != 0).any(1, keepdim=True), there, fixed)

        if self.follow == "warp":
            return follow(cells("whole"))
        # Cells whose flow leads to the place of the person must not take their values from there.
        hole = _dilated(cells("before"), _HOLE)
        faded = cells("faded")
        free = (1 - _warp(hole, faded)).clamp(0, 1)
        behind = torch.where(hole > 0, _filled(follow(faded), free), fixed)
        person, matte = cells("person"), cells("matte")
        parted = torch.lerp(behind, follow(person), matte)
        near = F.max_pool2d((person != 0).any(1, keepdim=True).to(fixed), 3, 1, 1)
        return torch.where(near > 0, parted, fixed)


def at_side(mask: np.ndarray) -> np.ndarray:
    """Return a bool mask [R, R] at `SIDE` px."""
    sized = cv2.resize(mask.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(sized > 0)


def seen(pictures: Tensor) -> list[np.ndarray]:
    """Return pictures [B, 3, R, R] as uint8 [SIDE, SIDE, 3]."""
    small = downsample(pictures, SIDE)
    if small.shape[-1] < SIDE:
        small = F.interpolate(small, (SIDE, SIDE), mode="bilinear")
    return tensor_to_images(small)


def _resized(maps: Tensor, size: int) -> Tensor:
    """Return maps [N, C, SIDE, SIDE] at another size. Cells without any value but 0 stay 0."""
    if size <= SIDE:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, (size, size), mode="nearest")


def _dilated(maps: Tensor, radius: int) -> Tensor:
    """Return the largest value within a radius, in pixels of `SIDE`."""
    reach = max(1, round(radius * maps.shape[-1] / SIDE))
    return F.max_pool2d(maps, 2 * reach + 1, 1, reach)


def _warp(a: Tensor, flow: Tensor) -> Tensor:
    """Return a(p + flow(p)) of [N, C, h, w] for flows [N, 2, h, w] in pixels of `SIDE`."""
    size = a.shape[-1]
    middles = (torch.arange(size, device=a.device, dtype=a.dtype) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    grid = torch.stack([x, y], -1) + flow.permute(0, 2, 3, 1) * (2 / SIDE)
    return F.grid_sample(a, grid, padding_mode="border", align_corners=False)


def _filled(a: Tensor, free: Tensor) -> Tensor:
    """Return features [N, C, h, w] with cells that are not free interpolated from the others.

    Gortler et al., "The Lumigraph" (1996): means of larger blocks fill what smaller ones leave.

    Args:
        a: The features.
        free: How much of each cell is valid, [N, 1, h, w] in 0..1.
    """
    if a.shape[-1] < 2:
        return a
    weight = F.avg_pool2d(free, 2)
    means = F.avg_pool2d(a * free, 2) / weight.clamp_min(1e-6)
    coarse = _filled(means, (4 * weight).clamp(max=1))
    return torch.lerp(F.interpolate(coarse, a.shape[2:], mode="bilinear"), a, free)
