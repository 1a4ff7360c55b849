"""Embedding by encoders: which row goes where, on which generator, and the loop of ReStyle."""

from __future__ import annotations

import pytest
import torch

from dhr_batch.stages import registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.embed.encoders import (
    EncodeE4E,
    EncodeW,
    ReStylePSP,
    encoder_input,
    row_table,
)
from dhr_batch.stages.networks.generators.mobilestylegan import (
    FFHQ_CHANNELS,
    STYLEGAN2_ROWS,
    MobileStyleGAN,
)
from dhr_batch.tests.stages import narrow


@pytest.fixture(scope="module")
def full() -> MobileStyleGAN:
    with torch.device("meta"):
        return MobileStyleGAN(FFHQ_CHANNELS)


def test_rows_go_where_the_generator_says(full):
    table = row_table(full, 18)
    assert {row: i for i, row in enumerate(table) if row >= 0} == STYLEGAN2_ROWS
    assert [i for i, row in enumerate(table) if row < 0] == [3, 6, 9, 12, 15, 18, 22]


def test_the_head_of_a_cut_network_takes_the_row_of_the_layer_it_stands_for():
    with torch.device("meta"):
        cut = MobileStyleGAN(FFHQ_CHANNELS[:6], feature_block=3, num_ws=23)
    table = row_table(cut, 18)
    assert table[15] == 11
    # So that a code found at 256 px renders at 1024 px.
    assert (table[16], table[21]) == (11, 15)


def test_another_number_of_rows_is_refused(full):
    with pytest.raises(ValueError, match="codes of 14 rows do not fit this generator"):
        row_table(full, 14)


def embedder(member, checkpoint, tmp_path, **options):
    torch.save(checkpoint, tmp_path / "encoder.pt")
    context = Context("cpu", "tiny", lambda name: tmp_path / "encoder.pt")
    stage = member(member.Options(**options))
    stage.setup(context)
    return stage


def test_a_code_is_the_encoders_plus_the_mean(narrow_encoder, tmp_path):
    stage = embedder(EncodeE4E, narrow_encoder(shared=True), tmp_path)
    images = torch.rand(2, 3, 256, 256) * 2 - 1
    with torch.no_grad():
        rows = stage.encoder(images) + stage.mean
    codes = stage.embed(images)
    assert codes.shape == (2, 8, 512)
    for target, source in {0: 0, 1: 1, 2: 2, 4: 3, 5: 4, 6: 5, 7: 5}.items():
        assert torch.equal(codes[:, target], rows[:, source])
    torch.testing.assert_close(codes[:, 3], codes[:, [0, 1, 2, 4, 5, 6, 7]].mean(1))


def test_the_style_transformer_is_chosen_by_name(golden_case, tmp_path):
    case = golden_case("style_transformer")
    state = {k: torch.zeros(()).expand(shape) for k, shape in case.facts["state_dict"]}
    # Without weights, the last normalisation gives its bias: the mean code is moved by it.
    state["encoder.transformerlayer_fine.norm3.bias"] = torch.arange(512.0)
    checkpoint = {"state_dict": state, "latent_avg": torch.randn(18, 512)}
    member = registry.lookup("embed", "style-transformer")
    stage = embedder(member, checkpoint, tmp_path)
    assert stage.models(aligned=True) == {"style-transformer-ffhq"}
    codes = stage.embed(torch.rand(1, 3, 32, 32))
    wanted = checkpoint["latent_avg"] + torch.arange(512.0)
    assert codes.shape == (1, 8, 512)
    torch.testing.assert_close(codes[0, 0], wanted[0])
    torch.testing.assert_close(codes, stage.codes(wanted[None]))


def test_restyle_sees_its_own_render(narrow_encoder, tmp_path):
    layout = {"shared": False, "pyramid": False, "inputs": 6}
    stage = embedder(ReStylePSP, narrow_encoder(**layout), tmp_path, steps=2)
    seen = []
    stage.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    codes = stage.embed(images)
    target = encoder_input(images)
    with torch.no_grad():
        mean = stage.mean[None]
        first = encoder_input(stage.generator.synthesize(stage.codes(mean)))
        rows = mean + stage.encoder(torch.cat([target, first], 1))
        second = encoder_input(stage.generator.synthesize(stage.codes(rows)))
    torch.testing.assert_close(seen[0], torch.cat([target, first], 1))
    torch.testing.assert_close(seen[1], torch.cat([target, second], 1))
    assert len(seen) == 3
    assert not torch.equal(codes, stage.codes(rows))


def test_a_code_in_w_is_relative_to_the_mean_of_another_model(tmp_path):
    other, published = torch.randn(512), narrow.w_encoder()
    torch.save(published, tmp_path / "hyperstyle-w-encoder")
    torch.save({"latent_avg": other.repeat(18, 1)}, tmp_path / "hyperstyle-ffhq")
    context = Context("cpu", "tiny", lambda name: tmp_path / name)
    images = torch.rand(2, 3, 256, 256) * 2 - 1
    own = published["latent_avg"][0]
    assert EncodeW(EncodeW.Options()).models(True) == {"hyperstyle-w-encoder", "hyperstyle-ffhq"}
    for options, mean in (({}, other), ({"mean_model": "hyperstyle-w-encoder"}, own)):
        stage = EncodeW(EncodeW.Options(**options))
        stage.setup(context)
        with torch.no_grad():
            latent = stage.encoder(images) + mean
        assert torch.equal(stage.embed(images), latent[:, None].expand(-1, 8, -1))


def test_input_is_reduced_by_area():
    images = torch.rand(1, 3, 1024, 1024)
    small = encoder_input(images)
    torch.testing.assert_close(small[0, :, 7, 9], images[0, :, 28:32, 36:40].mean((1, 2)))
    assert encoder_input(images[:, :, :32, :32]).shape == (1, 3, 256, 256)
