"""Style Transformer against the published implementation, and its file."""

from __future__ import annotations

import pytest
import torch

from dhr_batch.stages.networks.encoders import psp as encoders
from dhr_batch.stages.networks.encoders import style_transformer


@pytest.fixture(scope="module")
def case(golden_case):
    return golden_case("style_transformer")


@pytest.fixture(scope="module")
def checkpoint(case):
    """A file of the published layout, whose parts were wrapped by DataParallel."""
    state = {}
    for key, value in case.state().items():
        network, _, name = key.partition(".")
        state[f"{network}.module.{name}"] = value
    state["decoder.module.conv1.conv.weight"] = torch.zeros(1)
    opts = {"start_from_latent_avg": True, "learn_in_w": False}
    return {"state_dict": state, "latent_avg": case.input("latent_avg"), "opts": opts}


@pytest.fixture(scope="module")
def loaded(checkpoint, tmp_path_factory):
    file = tmp_path_factory.mktemp("transformer") / "st.pt"
    torch.save(checkpoint, file)
    return style_transformer.load(file)


def test_rows_equal_published(loaded, case):
    net, mean = loaded
    case.check("query", net.queries)
    images = case.input("image")
    with torch.no_grad():
        rows = net(images)
        single = torch.cat([net(image[None]) for image in images])
    case.check("codes", rows)
    case.check("w", rows + mean)
    torch.testing.assert_close(rows, single, rtol=1e-4, atol=1e-4)


def without_numbers(checkpoint):
    """The same layout without numbers, in a small file."""
    state = {k: torch.zeros(()).expand(v.shape) for k, v in checkpoint["state_dict"].items()}
    return {**checkpoint, "state_dict": state}


def test_names_without_dataparallel_are_read_as_well(checkpoint, tmp_path):
    small = without_numbers(checkpoint)
    small["state_dict"] = {k.replace(".module", ""): v for k, v in small["state_dict"].items()}
    torch.save(small, tmp_path / "st.pt")
    net, _ = style_transformer.load(tmp_path / "st.pt")
    assert not net.training


def test_the_mean_may_be_one_row_or_left_out(checkpoint, tmp_path):
    file, small = tmp_path / "st.pt", without_numbers(checkpoint)
    row = torch.randn(1, 512)
    torch.save(small | {"latent_avg": row}, file)
    assert torch.equal(style_transformer.load(file)[1], row.repeat(18, 1))
    del small["latent_avg"]
    torch.save(small | {"opts": {"start_from_latent_avg": False}}, file)
    assert not style_transformer.load(file)[1].any()


FINE = "encoder.module.transformerlayer_fine"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {f"{FINE}.norm3.bias": None},
            r"StyleTransformer: transformerlayer_fine.norm3.bias is mis",
        ),
        ({"encoder.module.extra": torch.zeros(1)}, r"StyleTransformer: extra is unknown"),
        ({f"{FINE}.norm3.bias": torch.zeros(2)}, r"norm3.bias has shape \[2\], not \[512\]"),
        ({"encoder.module.z": None}, r"st.pt has no 'z', only: "),
        ({"encoder.module.z": torch.zeros(1, 14, 512)}, r"encoder.z has shape \[1, 14, 512\]"),
        ({"decoder.module.style.2.bias": None}, r"decoder.style is not a mapping network"),
        ({"decoder.module.style.2.weight": torch.zeros(9, 9)}, r"decoder.style is not a mapping"),
    ],
)
def test_another_file_is_refused_by_its_key(checkpoint, tmp_path, broken, message):
    small = without_numbers(checkpoint)
    small["state_dict"] = {k: v for k, v in (small["state_dict"] | broken).items() if v is not None}
    torch.save(small, tmp_path / "st.pt")
    with pytest.raises(ValueError, match=message):
        style_transformer.load(tmp_path / "st.pt")


def test_files_of_other_encoders_are_refused(narrow_encoder, checkpoint, tmp_path):
    file = tmp_path / "encoder.pt"
    torch.save(narrow_encoder(shared=True), file)
    with pytest.raises(ValueError, match=r"encoder.pt has no 'z', only: "):
        style_transformer.load(file)
    torch.save(without_numbers(checkpoint), file)
    with pytest.raises(ValueError, match=r"encoder.pt (does not fit Encoder|has no 'input_layer)"):
        encoders.load(file, shared=True)
    torch.save({"state_dict": {"a.b": torch.zeros(1)}}, file)
    with pytest.raises(ValueError, match=r"encoder.pt has no weights encoder.\*, only: a.\*"):
        style_transformer.load(file)
