"""Edits in StyleSpace: channels by name and published number, units, and their pictures."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dhr_batch.stages.context import Context
from dhr_batch.stages.edit import stylespace
from dhr_batch.stages.edit.direction_files import DirectionError
from dhr_batch.stages.edit.directions import Directions
from dhr_batch.stages.edit.rerender import Rerender
from dhr_batch.stages.edit.stylespace import PUBLISHED, deviations, style_widths
from dhr_batch.stages.edit.syntax import Channel
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.record import Record
from dhr_batch.tests.stages.channels import fitted, load, no_models, published_std


def test_layers_have_the_published_order(large):
    widths = style_widths(large)
    assert tuple(widths.values()) == PUBLISHED
    assert sum(PUBLISHED) == 9088
    names = list(widths)
    assert names[:5] == ["conv1", "to_rgb1", "convs.0", "convs.1", "to_rgbs.0"]
    images = [i for i, name in enumerate(names) if name.startswith("to_rgb")]
    assert images == list(range(1, 26, 3))


@pytest.mark.parametrize("net", ["small", "mobile"])
def test_styles_are_what_modulation_computes(net, request):
    generator = request.getfixturevalue(net)
    ws = torch.randn(2, generator.num_ws, 512, generator=torch.Generator().manual_seed(1))
    styles = generator.styles(ws, style_widths(generator))
    assert styles.keys() == style_widths(generator).keys()
    rows = {name: row for row in generator.live_rows for name in generator.modulated(row)}
    for name, style in styles.items():
        weight = generator.weight(f"{name}.modulation.weight").double()
        code = ws[:, rows[name]].double()
        # StyleGAN2 applies the scale of its weights at run time.
        code = code / 512**0.5 if net == "small" else code
        expected = code @ weight.T + generator.weight(f"{name}.modulation.bias").double()
        assert torch.allclose(style.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("net", "layer"), [("small", "convs.2"), ("mobile", "layers.1.up")])
def test_strength_is_in_deviations_of_the_channel(net, layer, request):
    generator = request.getfixturevalue(net)
    edit = fitted(generator, stylespace=f"{layer}/3", strengths=[1])
    ws = torch.zeros(2, generator.num_ws, 512)
    codes, offsets = edit.apply(ws, -2.0)
    assert codes is ws
    assert list(offsets) == [f"{layer}.style"]
    offset = offsets[f"{layer}.style"][0]
    assert offset.nonzero().flatten().tolist() == [3]
    z = torch.randn(20000, 512, generator=torch.Generator().manual_seed(7))
    styles = generator.styles(generator.broadcast(generator.map(z)), [layer])[layer]
    # Latents of random weights have heavy tails.
    assert -offset[3] / 2 == pytest.approx(float(styles[:, 3].std()), rel=0.4)


def test_units_do_not_depend_on_how_a_network_is_written(small):
    """Modulations times c with kernels divided by c: offsets are c times as large."""
    other = StyleGAN2((12, 10, 8, 6), mapping_layers=2)
    for name in small.weight_names():
        factor = 0.25 if name.startswith("convs.1.modulation") else 1
        other.weight(name).copy_(factor * small.weight(name))
    layer = {"stylespace": "convs.1/2"}
    first, second = (fitted(net, **layer).offsets["convs.1.style"] for net in (small, other))
    assert torch.equal(0.25 * first, second)


def test_several_channels_and_signs_add_up(small):
    one = fitted(small, stylespace="convs.0/1").offsets["convs.0.style"]
    two = fitted(small, stylespace="convs.1/4").offsets["convs.1.style"]
    both = fitted(small, stylespace="convs.0/1, -convs.1/4, convs.0/1").offsets
    assert torch.allclose(both["convs.0.style"], 2 * one)
    assert torch.equal(both["convs.1.style"], -two)
    listed = load(stylespace=["convs.0/1", "-convs.1/4", "+convs.0/1"])
    assert listed.sha256 == load(stylespace="convs.0/1,-convs.1/4,convs.0/1").sha256
    assert listed.sha256 != load(stylespace="convs.0/1,convs.1/4,convs.0/1").sha256


def test_published_numbers_name_layers_of_the_published_network(large, small, mobile):
    edit = fitted(large, stylespace="6/501")
    assert list(edit.offsets) == ["convs.3.style"]
    assert edit.offsets["convs.3.style"][0].nonzero().flatten().tolist() == [501]
    assert edit.name == "s6_501"
    for generator in (small, mobile):
        with pytest.raises(DirectionError, match=r"6/5.*StyleGAN2 at 1024 px.*names of layers"):
            fitted(generator, stylespace="6/5")


def test_channels_that_do_not_exist_are_refused(large, small):
    with pytest.raises(DirectionError, match=r"no layer 26; choose one from 0 to 25"):
        fitted(large, stylespace="26/0")
    with pytest.raises(DirectionError, match=r"convs\.3 has 512 channels"):
        fitted(large, stylespace="6/512")
    with pytest.raises(DirectionError, match=r"no layer 'convs\.9'; choose from: conv1, to_rgb1"):
        fitted(small, stylespace="convs.9/0")
    for text in ("6_501", "6/-1", "", "6/5/1", f"6/{'9' * 5000}"):
        with pytest.raises(ValidationError, match="not a channel"):
            load(stylespace=text)
    assert str(Channel.parse(" -convs.3/17")) == "-convs.3/17"


def test_a_channel_that_does_not_vary_is_refused(small):
    dead = StyleGAN2((12, 10, 8, 6), mapping_layers=2)
    for name in small.weight_names():
        dead.weight(name).copy_(small.weight(name))
    dead.weight("convs.1.modulation.weight")[2] = 0
    with pytest.raises(DirectionError, match="does not vary"):
        fitted(dead, stylespace="convs.1/2")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_published_deviations_are_used(large, small, tmp_path, protocol):
    path, std = published_std(tmp_path, protocol=protocol)
    edit = fitted(large, stylespace="12/479, to_rgbs.7/3", std=str(path))
    assert float(edit.offsets["convs.7.style"][0, 479]) == std[12][479]
    assert float(edit.offsets["to_rgbs.7.style"][0, 3]) == std[25][3]
    assert edit.sha256 != load(stylespace="12/479, to_rgbs.7/3").sha256
    with pytest.raises(DirectionError, match="file of standard deviations is for"):
        fitted(small, stylespace="convs.0/1", std=str(path))


def test_other_files_of_deviations_are_named(tmp_path):
    path = tmp_path / "S_mean_std"
    for content, message in (
        ([[np.ones(3)], [np.ones(3)]], "26 layers"),
        ([np.ones(3)], "two lists"),
        ([["a"], ["b"]], "not an array"),
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(DirectionError, match=rf"S_mean_std.*{message}"):
            stylespace.read_std(path)
    path.write_bytes(b"text")
    with pytest.raises(DirectionError, match="S_mean_std"):
        stylespace.read_std(path)
    with pytest.raises(DirectionError, match="absent"):
        stylespace.read_std(tmp_path / "absent")


def test_deviations_are_the_same_each_time(small):
    first, second = deviations(small, ["convs.0"]), deviations(small, ["convs.0"])
    assert np.array_equal(first["convs.0"], second["convs.0"])


def context_of(generator):
    made = Context("cpu", "own", no_models)
    made._networks["generator", "own"] = generator
    return made


def refined_record(generator, layer, seed=0):
    """A record as refinement leaves it, with offsets of the modulation of a layer among others."""
    draw = torch.Generator().manual_seed(seed)
    ws = generator.broadcast(generator.map(torch.randn(1, 512, generator=draw)))
    names = [f"{layer}.modulation.weight", f"{layer}.modulation.bias", "conv1.weight"]
    delta = {n: 0.05 * torch.randn(generator.weight(n).shape, generator=draw) for n in names}
    feature = torch.randn(generator.to_feature(ws).shape, generator=draw)[0]
    mask = np.zeros((generator.resolution,) * 2, bool)
    mask[:, : generator.resolution // 2] = True
    record = Record(
        f"{seed}",
        "s",
        latent=ws[0].numpy().copy(),
        mask=mask,
        delta={n: d.numpy() for n, d in delta.items()},
        feature=feature.numpy(),
    )
    return Rerender(context_of(generator))(record)


@pytest.mark.parametrize(("net", "layer"), [("small", "convs.1"), ("mobile", "layers.1.conv1")])
def test_offsets_are_added_to_styles_of_the_refined_modulation(net, layer, request):
    """The same picture with the offset as a further refinement of the modulation's bias."""
    generator = request.getfixturevalue(net)
    before = refined_record(generator, layer)
    edit = {"stylespace": f"{layer}/2", "strengths": (-3, 0, 8)}
    # Pictures of different weights move differently, so nothing follows the motion here.
    stage = Directions(Directions.Options.model_validate({"edits": [edit], "follow": "none"}))
    stage.setup(context_of(generator))
    after = stage.run([before])[0]
    assert after.failure is None, after.failure
    low, zero, high = after.edits
    assert np.array_equal(zero.image, before.refined)
    assert all(np.array_equal(e.latent, before.latent) for e in after.edits)
    assert {e.direction_sha256 for e in after.edits} == {load(**edit).sha256}
    for done in (low, high):
        assert np.abs(done.image.astype(int) - before.refined).mean() > 0.3
        bias = before.delta[f"{layer}.modulation.bias"].copy()
        bias[2] += done.strength * float(fitted(generator, **edit).offsets[f"{layer}.style"][0, 2])
        delta = before.delta | {f"{layer}.modulation.bias": bias}
        expected = Rerender(context_of(generator))(replace(before, delta=delta)).refined
        assert np.abs(done.image.astype(int) - expected).max() <= 1


def test_kinds_of_edits_share_batches(small, tmp_path):
    np.save(tmp_path / "push.npy", np.random.default_rng(5).normal(size=512).astype(np.float32))
    edits = [
        {"direction": str(tmp_path / "push.npy"), "strengths": (-1, 1)},
        {"stylespace": "convs.1/2", "strengths": (-3, 3)},
        {"stylespace": "convs.0/1, to_rgbs.1/4", "strengths": (0, 5)},
    ]
    before = refined_record(small, "convs.1")
    done = []
    for batch in (8, 1):
        options = {"edits": edits, "batch": batch, "follow": "none"}
        stage = Directions(Directions.Options.model_validate(options))
        stage.setup(context_of(small))
        done.append(stage.run([before])[0].edits)
    assert [e.name for e in done[0]][::2] == ["push", "sconvs.1_2", "sconvs.0_1_to_rgbs.1_4"]
    for together, alone in zip(*done, strict=True):
        assert np.abs(together.image.astype(int) - alone.image).max() <= 1


def test_shipped_channels_fit_the_published_network(large, tmp_path):
    from dhr_batch.stages.edit.direction_files import describe_set, sets_folder

    for name in describe_set(sets_folder() / "stylespace.yaml")["edits"]:
        edit = fitted(large, direction=name, std=str(published_std(tmp_path)[0]))
        assert edit.offsets
