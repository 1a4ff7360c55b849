"""Several edits in one picture, on generators with random weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dhr_batch.stages.context import Context
from dhr_batch.stages.edit.base import Edit, Step
from dhr_batch.stages.edit.direction_files import DirectionError
from dhr_batch.stages.edit.directions import Directions
from dhr_batch.stages.edit.rerender import Rerender
from dhr_batch.stages.record import Record, edit_of, edit_stage
from dhr_batch.stages.registry import InvalidInput


@pytest.fixture(scope="module")
def context():
    return Context("cpu", "tiny", models=lambda name: None)


@pytest.fixture
def files(tmp_path):
    """Two directions, and settings of an edit whose strength is a target."""
    draw = np.random.default_rng(3)
    for name in ("push", "pull"):
        np.save(tmp_path / f"{name}.npy", draw.normal(size=512).astype(np.float32))
    comp = np.linalg.qr(draw.normal(size=(512, 3)))[0].T.astype(np.float32)
    np.savez(tmp_path / "pca.npz", mean=np.zeros(512), comp=comp, std=np.ones(3))
    (tmp_path / "go.yaml").write_text(
        f"{{ganspace: {tmp_path}/pca.npz, component: 1, rows: [0, 2]}}"
    )
    (tmp_path / "style.yaml").write_text("{stylespace: layers.1.conv1/2}")
    return {path.stem: str(path) for path in tmp_path.iterdir()}


@pytest.fixture
def record(context):
    net = context.network("generator", "tiny")
    ws = net.broadcast(net.map(torch.randn(1, 512, generator=torch.Generator().manual_seed(1))))
    feature = net.to_feature(ws)[0] + 1
    mask = np.zeros((net.resolution,) * 2, bool)
    mask[:, : net.resolution // 2] = True
    found = Record(
        "a", "a", latent=ws[0].numpy().copy(), mask=mask, delta={}, feature=feature.numpy()
    )
    return Rerender(context)(found)


def made(context, record, *edits, **rule):
    stage = Directions(Directions.Options.model_validate({"edits": edits} | rule))
    stage.setup(context)
    done = stage.run([replace(record, image=record.refined)])[0]
    assert done.failure is None, done.failure
    return done.edits


RULES = [{}, {"rows": "all", "follow": "none"}, {"follow": "none"}]


@pytest.mark.parametrize("rule", RULES)
def test_two_directions_add_up_in_one_picture(context, files, record, rule):
    text = f"{files['push']}=1.5+{files['pull']}=-2"
    parts = [{"direction": files[n], "strengths": [s]} for n, s in (("push", 1.5), ("pull", -2))]
    (both,) = made(context, record, {"direction": text}, **rule)
    assert (both.name, both.strength) == ("push=1.5+pull=-2", 1)
    assert edit_of(edit_stage(both.name, both.strength)) == (both.name, 1)
    alone = made(context, record, *parts, **rule)
    moved = sum(edit.latent - record.latent for edit in alone)
    np.testing.assert_allclose(both.latent, record.latent + moved, atol=1e-5)
    (same,) = made(context, record, {"combined": parts}, **rule)
    np.testing.assert_array_equal(same.image, both.image)
    assert same.direction_sha256 == both.direction_sha256
    summed = np.float32(1.5) * np.load(files["push"]) - np.float32(2) * np.load(files["pull"])
    np.save(files["push"], summed)
    (one,) = made(context, record, {"direction": files["push"], "strengths": [1]}, **rule)
    assert np.abs(one.image.astype(int) - both.image).max() <= 1
    assert one.direction_sha256 != both.direction_sha256


def test_strengths_are_shares_of_the_way(context, files, record):
    text = f"{files['push']}=2+{files['go']}=5"
    edit = {"direction": text, "strengths": [0, 0.5, 1], "label": "both"}
    nothing, half, whole = made(context, record, edit)
    assert [(e.name, e.strength) for e in (nothing, half, whole)] == [
        ("both", s) for s in (0, 0.5, 1)
    ]
    np.testing.assert_array_equal(nothing.image, record.refined)
    np.testing.assert_array_equal(nothing.latent, record.latent)
    # The target moves with the code that the first edit has made, by at most its own length.
    middle = (record.latent + whole.latent) / 2
    net = context.network("generator", "tiny")
    assert (
        np.abs(half.latent - middle)[net.trunk_rows].max()
        < 0.2 * np.abs(whole.latent - record.latent).max()
    )


def test_each_edit_moves_its_own_rows_and_styles(context, files, record):
    """An edit that names its rows is not limited by the other, nor the other freed by it."""
    net = context.network("generator", "tiny")
    kept = [row for row in range(net.num_ws) if row not in net.trunk_rows]
    one, two = {"direction": files["push"], "strengths": [1]}, {"direction": files["go"]}
    (both,) = made(context, record, {"direction": f"{files['push']}=1+{files['go']}=5"})
    (limited,) = made(context, record, one)
    assert np.abs(both.latent - limited.latent).max() > 0.1
    np.testing.assert_array_equal(both.latent[kept], record.latent[kept])
    (styled,) = made(context, record, {"direction": f"{files['push']}=1+{files['style']}=9"})
    np.testing.assert_array_equal(styled.latent, limited.latent)
    assert np.abs(styled.image.astype(int) - limited.image).mean() > 0.1
    (alone,) = made(context, record, two | {"strengths": [5]})
    assert np.abs(alone.image.astype(int) - both.image).mean() > 0.1


class Add(Edit):
    def __init__(self, names_rows):
        self.names_rows = names_rows

    def fit(self, generator):
        raise AssertionError

    def apply(self, ws, strength):
        return ws + strength, {}


def test_layers_behind_see_only_edits_that_name_their_rows():
    start = Step(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
    kept = torch.tensor([[False], [True]])
    limited = Add(names_rows=False).step(start, 1, kept)
    both = Add(names_rows=True).step(limited, 10, kept)
    for step, code, behind in ((limited, [1, 0], [0, 0]), (both, [11, 10], [10, 10])):
        assert step.code.flatten().tolist() == code
        assert step.behind.flatten().tolist() == behind


def test_a_combination_may_be_part_of_one(context, files, record, tmp_path):
    parts = [{"direction": files[n], "strengths": [s]} for n, s in (("push", 1), ("pull", -2))]
    (tmp_path / "both.yaml").write_text(json.dumps({"combined": parts}))
    text = f"{tmp_path}/both.yaml=0.5+{files['push']}=1.5"
    (edit,) = made(context, record, {"direction": text})
    assert edit.name == "both=0.5+push=1.5"
    (same,) = made(context, record, {"direction": f"{files['push']}=2+{files['pull']}=-1"})
    np.testing.assert_allclose(edit.latent, same.latent, atol=1e-5)


def test_shipped_combinations_are_named_as_directions_are(context, record):
    options = Directions.Options.model_validate
    closed, years = options({"edits": [{"direction": "smile_closed"}, {"direction": "age"}]}).edits
    assert [edit.direction for edit in closed.combined] == ["smile", "mouth_open"]
    assert (closed.label, closed.strengths) == ("smile_closed", (-2, -1, 1, 2))
    # A direction in years states strengths that show.
    assert (years.direction, years.strengths) == ("age", (-20, -10, 10, 20))
    (edit,) = Rerender(context, ["smile_closed=2+age=10"])(record).edits
    assert edit.name == "smile_closed=2+age=10"
    smile, mouth, age = Rerender(context, ["smile=2", "mouth_open=-1.24", "age=10"])(record).edits
    moved = smile.latent + mouth.latent + age.latent - 2 * record.latent
    np.testing.assert_allclose(edit.latent, moved, atol=1e-4)


def test_combinations_are_rendered_again(context, files, record):
    text = f"{files['push']}=1+{files['go']}=5"
    again = Rerender(context, [text, (files["push"], 2.0)])(record).edits
    assert [(e.name, e.strength) for e in again] == [("push", 2), ("push=1+go=5", 1)]
    np.testing.assert_array_equal(
        again[1].image, made(context, record, {"direction": text})[0].image
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"combined": [{"direction": "smile", "strengths": [1]}]}, "at least 2"),
        ({"combined": [{"direction": "smile"}, {"direction": "yaw"}]}, "exactly one strength"),
        ({"combined": [{"strengths": [1]}] * 2}, "exactly one of: direction, ganspace"),
        ({"direction": "smile=1", "strengths": [2]}, "gives strengths already"),
    ],
)
def test_other_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Directions.Options(edits=(settings,))


def test_unknown_parts_are_named(context):
    with pytest.raises(DirectionError, match="unknown direction 'agee'"):
        Rerender(context, ["smile=1+agee=10"])
    with pytest.raises(InvalidInput, match="gone"):
        Rerender(context, ["smile=1+gone.yaml=10"])
