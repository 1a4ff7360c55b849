"""Edits by degrees: renders until the head has turned as far, on poses that are made up."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dhr_batch.stages.context import Context
from dhr_batch.stages.edit.base import Edit, Made, Move
from dhr_batch.stages.edit.combined import Combined
from dhr_batch.stages.edit.direction_files import DirectionError
from dhr_batch.stages.edit.directions import Directions
from dhr_batch.stages.edit.rerender import Rerender
from dhr_batch.stages.edit.syntax import AXES
from dhr_batch.stages.edit.turning import Turn, Turning
from dhr_batch.stages.record import Record
from dhr_batch.stages.registry import MODELS


class Slide(Edit):
    """An edit of one number."""

    name, sha256 = "yaw", "0" * 64

    def fit(self, generator):
        raise AssertionError

    def apply(self, ws, strength):
        return ws + strength, {}


class Heads:
    """Pictures of one pixel that hold the strength of the edit, and the poses of a head in them."""

    def __init__(self, pose, start=4.0, share=1.0):
        self.pose, self.start, self.share, self.renders = pose, start, share, []

    def render(self, moves):
        self.renders.append(len(moves))
        ws = torch.zeros(1, 1, 1)
        made = {}
        for i, move in moves.items():
            code = move.step(ws, None).code
            made[i] = Made(np.float64(code), code, {}, self.share)
        return made

    def score(self, portrait):
        turned = self.pose(float(portrait.rgb.item()))
        return turned and {score: self.start + turned for score in AXES.values()}


def found(heads, degrees):
    edits = [Move("yaw_degrees", Turn(Slide(), "yaw"), degree) for degree in degrees]
    turning = Turning(heads)
    return turning(dict(enumerate(edits)), np.zeros((1, 1, 1)), heads.render)


POSES = {
    "as expected": lambda strength: 10 * strength + 1e-9,
    "a lazy head": lambda strength: 4.5 * strength + 1e-9,
    "a quick head": lambda strength: 23 * strength + 1e-9,
    "it tires": lambda strength: 30 * math.tanh(strength / 2) + 1e-9,
    "it starts the other way": lambda strength: (
        strength * (-0.3 if abs(strength) < 2.1 else 4.1) + 1e-9
    ),
    "it starts slowly": lambda strength: strength * (3 + 2 * abs(strength)) + 1e-9,
}


@pytest.mark.parametrize("name", POSES)
def test_the_head_turns_as_far_as_was_asked(name):
    heads = Heads(POSES[name])
    wanted = [-15.0, 10.0, 15.0, 20.0]
    for degrees, made in zip(wanted, found(heads, wanted).values(), strict=True):
        assert POSES[name](made.code.item()) == pytest.approx(degrees, abs=3)
        assert made.note == ""
    assert heads.renders[0] == len(wanted)
    assert len(heads.renders) <= 3


def test_a_close_picture_is_not_rendered_again():
    heads = Heads(POSES["as expected"])
    found(heads, [10.0, -20.0])
    assert heads.renders == [2]


def test_an_edit_that_was_reduced_is_not_pushed_further():
    heads = Heads(lambda strength: 2 * strength + 1e-9, share=0.75)
    (made,) = found(heads, [20.0]).values()
    assert heads.renders == [1]
    assert made.note.endswith("misses its degrees by 16")


def test_the_closest_picture_is_kept_and_a_miss_is_noted():
    """A head that turns by 12 degrees at most, and jumps back if it is pushed further."""
    heads = Heads(lambda strength: max(1e-9, 6 * strength if strength < 2.1 else 1))
    (made,) = found(heads, [20.0]).values()
    assert made.code.item() == 2
    assert made.note == "edit: edit:yaw_degrees:20 misses its degrees by 8"


def test_a_face_that_is_lost_is_turned_less():
    heads = Heads(lambda strength: 10 * strength + 1e-9 if strength < 2.5 else None)
    (made,) = found(heads, [30.0]).values()
    assert made.code.item() < 2.5
    assert "misses" in made.note


def test_a_face_that_stays_lost_is_not_said_to_miss_by_degrees():
    heads = Heads(lambda strength: 1e-9 if strength == 0 else None)
    (made,) = found(heads, [30.0]).values()
    assert len(heads.renders) == 3
    assert made.note.endswith("is not calibrated, as the pose could not be measured")


def test_without_a_pose_of_the_refined_picture_nothing_is_calibrated():
    heads = Heads(lambda strength: None)
    (made,) = found(heads, [30.0]).values()
    assert made.code.item() == 3
    assert "is not calibrated" in made.note
    assert heads.renders == [1]


def test_a_combination_passes_its_degrees_and_corrections_on():
    both = Combined([(Slide(), 2.0), (Turn(Slide(), "pitch"), -20.0)], ["yaw=2", "pitch=-20deg"])
    assert both.name == "yaw=2+pitch=-20deg"
    assert both.turns(0.5) == {"pitch": -10}
    further = both.corrected({"pitch": 1.5})
    ws = torch.zeros(1, 1, 1)
    assert both.apply(ws, 1)[0].item() == 0
    assert further.apply(ws, 1)[0].item() == pytest.approx(2 - 3)
    assert further.name == both.name


@pytest.fixture
def yaw(tmp_path):
    np.save(tmp_path / "yaw.npy", np.random.default_rng(5).normal(size=512).astype(np.float32))
    return str(tmp_path / "yaw.npy")


class Answers:
    def __init__(self, *yaws):
        self.yaws = iter(yaws)

    def score(self, portrait):
        return {"yaw_mesh": next(self.yaws), "pitch_mesh": 0.0, "roll_mesh": 0.0}


def record(context):
    net = context.network("generator", "tiny")
    ws = net.broadcast(net.map(torch.randn(1, 512, generator=torch.Generator().manual_seed(1))))
    mask = np.ones((net.resolution,) * 2, bool)
    made = Record("a", "a", latent=ws[0].numpy().copy(), mask=mask, delta={})
    return Rerender(context)(replace(made, feature=net.to_feature(ws)[0].numpy()))


@pytest.mark.parametrize(
    ("text", "name", "strength"),
    [("{}=15deg", "yaw_degrees", 15.0), ("{}=15deg+smile=1", "yaw=15deg+smile=1", 1.0)],
)
def test_degrees_become_strengths_of_the_direction(yaw, text, name, strength):
    context = Context("cpu", "tiny", models=lambda name: None)
    before = record(context)
    rows = context.network("generator", "tiny").trunk_rows
    (smile,) = Rerender(context, ["smile=1"])(before).edits
    # The refined picture, and two renders of which the first turns the head half as far.
    context._networks["scores", "mesh"] = Answers(3.0, 3.0 + 7.5, 3.0 + 14.5)
    (edit,) = Rerender(context, [text.format(yaw)])(before).edits
    assert (edit.name, edit.strength) == (name, strength)
    moved = edit.latent - (smile.latent if "smile" in text else before.latent)
    expected = np.broadcast_to(3 * np.load(yaw), moved[rows].shape)
    np.testing.assert_allclose(moved[rows], expected, atol=1e-4)


def test_directions_say_which_angle_they_turn_the_head_by(yaw, tmp_path):
    options = Directions.Options.model_validate
    (edit,) = options({"edits": [{"direction": f"{yaw}=15deg"}]}).edits
    assert edit.models() == set(MODELS["scores", "mesh"])
    assert (edit.strengths, edit.name_of(edit.load(lambda name: None))) == ((15,), "yaw_degrees")
    np.save(tmp_path / "pose.npy", np.load(yaw))
    (own,) = options(
        {"edits": [{"direction": f"{tmp_path}/pose.npy", "unit": "deg", "label": "pitch"}]}
    ).edits
    assert own.name_of(own.load(lambda name: None)) == "pitch_degrees"
    with pytest.raises(DirectionError, match=r"smile takes no degrees, .*leave out the unit"):
        options({"edits": [{"direction": "smile=3deg"}]}).edits[0].load(lambda name: None)
    with pytest.raises(ValidationError):
        options({"edits": [{"direction": "beard=3deg"}]})
