"""The edit stage on the tiny generator: what moves, what stays, and what is refused.

Here nothing follows the motion; `test_rows_and_motion.py` has the default rule.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dhr_batch.stages.context import Context
from dhr_batch.stages.edit.direction_files import DirectionError
from dhr_batch.stages.edit.directions import Directions
from dhr_batch.stages.networks.generators.generator import replace_feature
from dhr_batch.stages.record import Record
from dhr_batch.stages.tensors import feature_mask, masks_to_tensor, tensor_to_images


@pytest.fixture(scope="module")
def context():
    return Context("cpu", "tiny", models=lambda name: None)


@pytest.fixture(scope="module")
def generator(context):
    return context.network("generator", "tiny")


@pytest.fixture
def direction(tmp_path):
    array = np.random.default_rng(5).normal(size=512).astype(np.float32)
    np.save(tmp_path / "push.npy", array)
    return str(tmp_path / "push.npy")


def record(generator, seed=0, mask=None, refined=True):
    """A record as `refine` leaves it, with random offsets and a random feature."""
    source = torch.Generator().manual_seed(seed)
    ws = generator.broadcast(generator.map(torch.randn(1, 512, generator=source)))
    size = generator.resolution
    mask = np.zeros((size, size), bool) if mask is None else mask
    if not refined:
        image = tensor_to_images(generator.synthesize(ws))[0]
        return Record(f"{seed}", "s", latent=ws[0].numpy().copy(), mask=mask, refined=image)
    names = ["conv1.weight", "layers.0.conv1.modulation.weight", "layers.1.conv2.weight"]
    delta = {n: 0.05 * torch.randn(generator.weight(n).shape, generator=source) for n in names}
    shape = generator.to_feature(ws).shape
    feature = torch.randn(shape, generator=source)
    soft = feature_mask(masks_to_tensor([mask]), tuple(shape[2:]))
    many = {n: d[None] for n, d in delta.items()}
    tap = {generator.feature_place: replace_feature(feature, soft)}
    image = tensor_to_images(generator.synthesize(ws, many, tap))[0]
    return Record(
        f"{seed}",
        "s",
        latent=ws[0].numpy().copy(),
        mask=mask,
        delta={n: d.numpy() for n, d in delta.items()},
        feature=feature[0].numpy(),
        refined=image,
    )


def stage(context, *edits, rows="all", follow="none", **options):
    made = Directions(Directions.Options(edits=edits, rows=rows, follow=follow, **options))
    made.setup(context)
    return made


def half(generator):
    mask = np.zeros((generator.resolution,) * 2, bool)
    mask[:, : generator.resolution // 2] = True
    return mask


def test_the_refined_generator_is_edited(context, generator, direction):
    mask = half(generator)
    before = record(generator, mask=mask)
    edits = stage(context, {"direction": direction, "strengths": (-1, 0, 1e-6, 1)})
    after = edits.run([before])[0]
    assert after.failure is None
    assert [(e.name, e.strength) for e in after.edits] == [("push", s) for s in (-1, 0, 1e-6, 1)]
    left, zero, tiny, right = after.edits
    assert np.array_equal(zero.image, before.refined)
    # Rendered, not copied: the refinement and the mask were really used.
    assert np.abs(tiny.image.astype(int) - before.refined).max() <= 1
    assert np.abs(left.image.astype(int) - right.image).mean() > 1
    array = np.load(direction)
    assert np.allclose(right.latent - before.latent, array[None], atol=1e-5)
    assert right.latent.dtype == np.float32
    assert len(right.direction_sha256) == 64
    assert np.array_equal(after.latent, before.latent)


def test_out_of_domain_content_before_the_feature_layer_stays(context, generator, tmp_path):
    """A direction of the rows before the feature layer does nothing where the feature is used."""
    rows = np.zeros((generator.num_ws, 512), np.float32)
    rows[: 3 * generator.feature_block + 3] = np.random.default_rng(2).normal(size=512)
    np.save(tmp_path / "early.npy", rows)
    edit = {"direction": str(tmp_path / "early.npy"), "strengths": (2.0,)}
    edits = stage(context, edit)
    out, mixed, whole = (
        edits.run([record(generator, mask=m)])[0]
        for m in (half(generator) & False, half(generator), half(generator) | True)
    )
    assert np.array_equal(out.edits[0].image, out.refined)
    assert np.abs(whole.edits[0].image.astype(int) - whole.refined).mean() > 1
    change = np.abs(mixed.edits[0].image.astype(int) - mixed.refined).mean((0, 2))
    margin = generator.resolution // 4
    assert change[:margin].mean() > 1
    assert change[-margin:].max() == 0


def test_a_later_direction_reaches_out_of_domain_content(context, generator, direction):
    after = stage(context, {"direction": direction, "strengths": (2.0,)}).run([record(generator)])[
        0
    ]
    assert np.abs(after.edits[0].image.astype(int) - after.refined).mean() > 1


def test_fewer_edits_are_rendered_at_a_time_if_memory_is_exhausted(
    context, generator, direction, monkeypatch
):
    edit = {"direction": direction, "strengths": (-2, -1, 1, 2, 3)}
    expected = stage(context, edit, batch=2).run([record(generator)])[0]
    edits = stage(context, edit)
    render, sizes, most = edits.refiner.render_edit, [], 2

    def limited(ws, edited, *rest):
        sizes.append(len(edited))
        if len(edited) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return render(ws, edited, *rest)

    monkeypatch.setattr(edits.refiner, "render_edit", limited)
    first, second = edits.run([record(generator), record(generator)])
    assert sizes == [5, 5, 4, 2, 2, 1, 2, 2, 1]
    for done in (first, second):
        assert done.failure is None
        for found, known in zip(done.edits, expected.edits, strict=True):
            assert np.array_equal(found.image, known.image)
    most = 0
    assert edits.run([record(generator)])[0].failure.error_class == "oom"


@pytest.mark.parametrize("delta", [None, {}])
def test_an_unrefined_image_is_edited_with_the_published_generator(
    context, generator, direction, delta
):
    before = replace(record(generator, refined=False), delta=delta)
    after = stage(context, {"direction": direction, "strengths": (0, 0.5)}).run([before])[0]
    ws = torch.from_numpy(before.latent + np.float32(0.5) * np.load(direction))[None]
    expected = tensor_to_images(generator.synthesize(ws))[0]
    assert np.array_equal(after.edits[0].image, before.refined)
    assert np.abs(after.edits[1].image.astype(int) - expected).max() <= 1


def test_results_do_not_depend_on_batches(context, generator, direction):
    edit = {"direction": direction, "strengths": (-2, -1, 0, 1, 2)}
    records = [record(generator, s, half(generator)) for s in range(3)]
    together = stage(context, edit, batch=8).run(records)
    for one, alone in zip(together, records, strict=True):
        other = stage(context, edit, batch=1).run([alone])[0]
        assert one.image_id == other.image_id
        for a, b in zip(one.edits, other.edits, strict=True):
            assert np.array_equal(a.latent, b.latent)
            assert np.abs(a.image.astype(int) - b.image).max() <= 1


def test_renders_are_batched(context, generator, direction, monkeypatch):
    sizes = []
    synthesize = type(generator).synthesize
    monkeypatch.setattr(
        type(generator),
        "synthesize",
        lambda self, ws, *a: sizes.append(len(ws)) or synthesize(self, ws, *a),
    )
    strengths = (-3, -2, -1, 0, 1, 2, 3)
    edits = stage(context, {"direction": direction, "strengths": strengths}, batch=4)
    before = record(generator)
    sizes.clear()
    edits.run([before])
    assert sizes == [4, 2]


def test_a_record_without_a_latent_fails_alone(context, generator, direction):
    good = record(generator)
    done = stage(context, {"direction": direction, "strengths": (1,)}).run(
        [good, replace(good, image_id="bad", latent=None)]
    )
    assert done[0].failure is None
    assert len(done[0].edits) == 1
    assert done[1].failure is not None
    assert done[1].failure.stage == "edit"


def test_directions_that_do_not_fit_the_generator_are_refused(context, tmp_path):
    np.save(tmp_path / "long.npy", np.ones((17, 512), np.float32))
    with pytest.raises(DirectionError, match=r"long\.npy.*17, 512.*\[18, 512\]"):
        stage(context, {"direction": str(tmp_path / "long.npy")})


def test_stylegan2_rows_are_accepted(context, generator, tmp_path):
    np.save(tmp_path / "sg2.npy", np.ones((1, 18, 512), np.float32))
    edits = stage(context, {"direction": str(tmp_path / "sg2.npy"), "strengths": (1,)})
    assert edits.moves[0].edit.rows.shape == (generator.num_ws, 512)
    fine = np.zeros((18, 512), np.float32)
    fine[16:] = 1  # the layers of 1024 px
    np.save(tmp_path / "fine.npy", fine)
    with pytest.raises(DirectionError, match=r"fine \(fine\.npy\).*no layer of this generator"):
        stage(context, {"direction": str(tmp_path / "fine.npy")})


def test_one_name_for_two_edits_is_refused(context, direction):
    with pytest.raises(DirectionError, match="label"):
        stage(context, {"direction": direction}, {"direction": direction, "strengths": (5,)})
    two = stage(context, {"direction": direction}, {"direction": direction, "label": "again"})
    assert {m.name for m in two.moves} == {"push", "again"}


@pytest.mark.parametrize("strengths", [(), (1, 1), (1, 1.0000001), (0.0, -0.0), (float("nan"),)])
def test_strengths_are_checked(strengths):
    with pytest.raises(ValidationError):
        Directions.Options(edits=({"direction": "smile", "strengths": strengths},))
