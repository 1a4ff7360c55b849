"""Feature layers that follow a given motion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dhr_batch.stages.edit import scene
from dhr_batch.stages.edit.scene import Scene
from dhr_batch.stages.motion import SIDE, Motion
from dhr_batch.stages.options.edit import Follow


class Plain:
    """A generator whose picture is its feature layer."""

    def trunk(self, ws: Tensor, delta: Any) -> tuple[Tensor, None]:
        return ws, None

    def from_feature(self, x: Tensor, ws: Tensor, delta: Any, skip: None) -> Tensor:
        return x


def layer(follow: Follow, feature: Tensor, mask: Tensor, inside: Tensor, moved: Motion) -> Tensor:
    """Return the layer of an edit with a given motion, [1, C, h, w]."""
    made = Scene(Plain(), inside, {}, feature, mask, None, "none")  # type: ignore[arg-type]
    made.follow = follow
    (draft,) = made.drafts(inside, inside, {})
    return made.finish([replace(draft, motion=moved)], {})


def uniform(x: float, person: np.ndarray) -> Motion:
    """The motion of a person by -x; the background stands still."""
    after = np.roll(person, -round(x), 1)
    everywhere = np.broadcast_to(np.float32([x, 0]), (SIDE, SIDE, 2)).copy()
    return Motion(
        whole=everywhere,
        person=everywhere,
        faded=np.zeros_like(everywhere),
        before=person,
        matte=after.astype(np.float32),
    )


def test_the_layers_are_the_moved_person_and_the_background_behind() -> None:
    """A feature of 16 x 16 cells, in which the person is 9 in columns 4 to 7 and moves by 4 to the
    right, before a background of 1."""
    person = np.zeros((SIDE, SIDE), bool)
    person[:, 64:128] = True
    feature, mask = torch.ones(1, 2, 16, 16), torch.zeros(1, 1, 16, 16)
    feature[..., 4:8] = 9
    inside = torch.full((1, 2, 16, 16), 5.0)
    found = layer("layers", feature, mask, inside, uniform(-64, person))
    expected = torch.ones(16)
    expected[8:12] = 9
    # The old place shows the background; nothing of the old person is left.
    torch.testing.assert_close(found, expected.expand(1, 2, 16, 16))
    found = layer("warp", feature, mask, inside, uniform(-64, person))
    torch.testing.assert_close(found, expected.expand(1, 2, 16, 16))


def test_the_hole_shows_what_the_flow_of_the_background_brings() -> None:
    """The person, cells 4 to 7, moves by 4 to the right; its edge has spoilt cell 3 as well."""
    person = np.zeros((SIDE, SIDE), bool)
    person[:, 64:128] = True
    moved = uniform(-64, person)
    moved.faded[..., 0] = -64
    feature = torch.arange(16.0).repeat(1, 1, 16, 1)
    feature[..., 3:8] = 100
    found = layer("layers", feature, torch.zeros(1, 1, 16, 16), feature, moved)[0, 0]
    torch.testing.assert_close(found[:, 3:7], torch.tensor([0.0, 0, 1, 2]).expand(16, 4))
    # It would bring cell 3 to cell 7, which is filled from those around it instead.
    assert found[:, 7].max() < 20
    # Only the hole follows this flow.
    expected = torch.tensor([100.0] * 4 + [12, 13, 14, 15])
    torch.testing.assert_close(found[:, 8:], expected.expand(16, 8))


def test_the_mask_moves_with_the_feature() -> None:
    person = np.ones((SIDE, SIDE), bool)
    feature, mask = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    inside = torch.ones(1, 1, 16, 16)
    found = layer("warp", feature, mask, inside, uniform(-32, person))
    expected = torch.zeros(16)
    expected[:10] = 1
    torch.testing.assert_close(found[0, 0], expected.expand(16, 16))


def test_the_feature_under_the_mask_is_not_seen() -> None:
    """It is not stored, and decodes to anything."""
    person = np.ones((SIDE, SIDE), bool)
    draw = torch.Generator().manual_seed(0)
    mask, inside = torch.zeros(1, 1, 16, 16), torch.randn(1, 3, 16, 16, generator=draw)
    mask[..., :8] = 1
    mask[..., 8] = 0.5
    feature = torch.randn(1, 3, 16, 16, generator=draw)
    other = torch.where(mask == 1, feature + 100, feature)
    one, two = (layer("layers", f, mask, inside, uniform(-24, person)) for f in (feature, other))
    torch.testing.assert_close(one, two)


def test_cells_that_do_not_move_keep_the_fixed_rule_bit_for_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    feature, inside = torch.randn(2, 1, 3, 16, 16, generator=draw)
    mask = torch.rand(1, 1, 16, 16, generator=draw)
    person = np.zeros((SIDE, SIDE), bool)
    person[:, 64:128] = True
    moved = uniform(-32, person)
    moved.person[128:] = 0
    fixed = torch.lerp(feature, inside, mask)
    found = layer("layers", feature, mask, inside, moved)
    # The cells below the middle are more than one cell away from all that moves.
    assert torch.equal(found[:, :, 9:], fixed[:, :, 9:])
    assert not torch.equal(found[:, :, :8], fixed[:, :, :8])


@pytest.mark.parametrize("size", [8, 64, 512])
def test_flows_are_scaled_to_feature_layers_of_any_size(size: int) -> None:
    columns = torch.arange(size, dtype=torch.float32).expand(1, 1, size, size).contiguous()
    person = np.ones((SIDE, SIDE), bool)
    found = layer("warp", columns, torch.zeros(1, 1, size, size), columns, uniform(-32, person))
    shift = 32 * size / SIDE
    torch.testing.assert_close(found, (columns - shift).clamp_min(0))


def test_holes_are_filled_from_all_sides() -> None:
    a = torch.full((1, 1, 16, 16), 7.0)
    free = torch.ones(1, 1, 16, 16)
    free[..., 5:11, 5:11] = 0
    filled = scene._filled(torch.where(free == 1, a, 1000.0), free)
    torch.testing.assert_close(filled, a)
