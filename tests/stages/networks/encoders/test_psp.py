"""Encoders and their published files."""

from __future__ import annotations

import json
from argparse import Namespace

import numpy as np
import pytest
import torch

from dhr_batch.stages.networks.encoders import psp as encoders
from dhr_batch.stages.networks.encoders.psp import Encoder, WEncoder
from dhr_batch.stages.networks.files import weight_files
from dhr_batch.tests.stages import narrow


@pytest.mark.parametrize(
    ("name", "shared"),
    [("e4e", True), ("psp", False), ("restyle_e4e", True), ("restyle_psp", False)],
)
def test_rows_equal_published(name, shared, golden, fill):
    facts = json.loads((golden / f"encoder_{name}.json").read_text())
    weights = {
        key: torch.from_numpy(np.asarray(fill(key, shape, facts["fill_rules"])))
        for key, shape in facts["state_dict"]
    }
    for key, first in facts["fill_check"].items():
        assert weights[key].flatten()[:3].tolist() == first
    shape = facts["inputs"]["image"]["shape"]
    with torch.device("meta"):
        net = Encoder(shared=shared, pyramid="latlayer1.weight" in weights, inputs=shape[1])
    weight_files.fill(net, weights, golden)
    with torch.no_grad():
        rows = net(0.5 * torch.from_numpy(fill("in.image", shape)))
    wanted = np.load(golden / f"encoder_{name}.npz")["w"]
    assert np.abs(rows.numpy() - wanted).max() <= facts["outputs"]["w"]["tolerance_abs"]


def test_latents_of_the_w_encoder_equal_published(golden_case):
    case = golden_case("encoder_hyperstyle_w")
    state = case.state()
    for key, first in case.facts["fill_check"].items():
        assert state[key].flatten()[:3].tolist() == first
    with torch.device("meta"):
        net = WEncoder()
    weight_files.fill(net, state, case.facts["name"])
    with torch.no_grad():
        case.check("w", net(case.input("image")))


@pytest.fixture
def checkpoint(narrow_encoder):
    return narrow_encoder(shared=True)


def test_a_published_file_is_loaded(checkpoint, tmp_path):
    checkpoint["state_dict"]["decoder.input.input"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "e4e.pt")
    net, mean = encoders.load(tmp_path / "e4e.pt", shared=True)
    assert (net.heads, net.pyramid, net.training) == (18, True, False)
    assert torch.equal(mean, checkpoint["latent_avg"])
    wanted = checkpoint["state_dict"]["encoder.styles.3.linear.weight"]
    assert torch.equal(net.state_dict()["styles.3.linear.weight"], wanted)


def test_a_mean_row_is_repeated_and_may_be_left_out(checkpoint, tmp_path):
    file = tmp_path / "e4e.pt"
    row = checkpoint["latent_avg"][:1]
    torch.save(checkpoint | {"latent_avg": row}, file)
    assert torch.equal(encoders.load(file, shared=True)[1], row.repeat(18, 1))
    torch.save(checkpoint | {"opts": {"start_from_latent_avg": False}}, file)
    assert not encoders.load(file, shared=True)[1].any()


@pytest.mark.parametrize("prefix", ["module.encoder.", "encoder.module."])
def test_names_of_data_parallel_and_arguments_of_a_script_are_accepted(
    prefix, checkpoint, tmp_path
):
    state = {k.replace("encoder.", prefix, 1): v for k, v in checkpoint["state_dict"].items()}
    opts = Namespace(start_from_latent_avg=False)
    torch.save(checkpoint | {"state_dict": state, "opts": opts}, tmp_path / "e4e.pt")
    net, mean = encoders.load(tmp_path / "e4e.pt", shared=True)
    wanted = checkpoint["state_dict"]["encoder.input_layer.0.weight"]
    assert torch.equal(net.state_dict()["input_layer.0.weight"], wanted)
    assert not mean.any()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda c: c.pop("latent_avg"), r"e4e.pt has no 'latent_avg', only: state_dict"),
        (lambda c: c.pop("state_dict"), r"e4e.pt has no 'state_dict'"),
        (
            lambda c: c["state_dict"].pop("encoder.body.3.res_layer.5.fc1.weight"),
            r"e4e.pt does not fit Encoder: body.3.res_layer.5.fc1.weight is missing",
        ),
        (
            lambda c: c["state_dict"].update({"encoder.extra": torch.zeros(1)}),
            r"extra is unknown",
        ),
        (
            lambda c: c["state_dict"].update({"encoder.latlayer1.bias": torch.zeros(3)}),
            r"latlayer1.bias has shape \[3\], not \[64\]",
        ),
        (lambda c: c.update(latent_avg=torch.zeros(2, 512)), r"latent_avg has shape \[2, 512\]"),
    ],
)
def test_another_file_is_refused_by_its_key(checkpoint, tmp_path, broken, message):
    broken(checkpoint)
    torch.save(checkpoint, tmp_path / "e4e.pt")
    with pytest.raises(ValueError, match=message):
        encoders.load(tmp_path / "e4e.pt", shared=True)


def test_a_w_encoder_is_loaded_and_an_encoder_of_rows_is_refused(checkpoint, tmp_path):
    published = narrow.w_encoder()
    torch.save(published, tmp_path / "w.pt")
    net = encoders.load_w(tmp_path / "w.pt")
    assert torch.equal(net.linear.weight, published["state_dict"]["encoder.linear.weight"])
    torch.save(checkpoint, tmp_path / "e4e.pt")
    with pytest.raises(ValueError, match=r"e4e.pt does not fit WEncoder: linear.weight is missing"):
        encoders.load_w(tmp_path / "e4e.pt")
    with pytest.raises(ValueError, match=r"w.pt does not fit Encoder: .*linear.weight is unknown"):
        encoders.load(tmp_path / "w.pt", shared=True)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("shape", [(512,), (1, 512), (18, 512)])
def test_a_mean_latent_has_several_layouts(legacy, shape, tmp_path):
    mean = torch.arange(512.0)
    content = {"latent_avg": mean.expand(shape).contiguous()}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    assert torch.equal(encoders.latent_average(tmp_path / "a.pt"), mean)


@pytest.mark.parametrize("mean", [torch.zeros(18, 256), torch.randn(18, 512), torch.zeros(())])
def test_a_mean_that_is_not_in_w_is_refused(mean, tmp_path):
    torch.save({"latent_avg": mean}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt: latent_avg of shape .* is no mean latent in W"):
        encoders.latent_average(tmp_path / "a.pt")


class Runs:
    def __reduce__(self):
        return print, ("code of a checkpoint was run",)


@pytest.mark.parametrize(
    "content", ["code", "arguments", "<html>", "junk", "", "truncated", "tensor"]
)
def test_damaged_and_hostile_files_are_named(content, checkpoint, tmp_path, capsys):
    file = tmp_path / "e4e.pt"
    contents = {"code": {"a": Runs()}, "tensor": torch.zeros(1)}
    contents["arguments"] = checkpoint | {"args": Namespace(a=Runs())}
    torch.save(contents.get(content, checkpoint), file)
    if content in ("<html>", "junk", ""):
        file.write_text(content)
    if content == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"e4e\.pt (cannot be read|holds a Tensor)"):
        encoders.load(file, shared=True)
    assert capsys.readouterr().out == ""
