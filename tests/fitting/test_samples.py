"""The sample cache, with a stand-in for the networks that label."""

import json
from importlib import resources

import numpy as np
import pytest
import torch
import yaml

from dhr_batch.fitting import samples
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models.weights import weights_of_generator
from dhr_batch.stages.context import Context


class Finder:
    """Finds a face in every second image."""

    calls = 0

    def locate(self, image):
        self.calls += 1
        return np.zeros(4), "hog" if self.calls % 2 else "ffhq"

    def find(self, image, box):
        return np.full((68, 2), 7.0)


class Features:
    def features(self, x):
        return [torch.zeros(1), x.mean(1, keepdim=True).expand(-1, 256, -1, -1)]


@pytest.fixture
def context(monkeypatch):
    monkeypatch.setattr(samples, "SHARD", 4)
    made = Context("cpu", "tiny", models=lambda name: None)
    made._networks[("landmarks", "dlib68")] = Finder()
    made._networks[("perceptual", "st_lpips_alex")] = Features()
    return made


def test_a_run_that_was_interrupted_goes_on(context, tmp_path):
    first = samples.collect(context, tmp_path, 4, seed=3)
    kept = (tmp_path / "00000.npz").read_bytes()
    calls = []
    both = samples.collect(context, tmp_path, 8, seed=3, report=lambda *a: calls.append(a))
    assert (tmp_path / "00000.npz").read_bytes() == kept
    assert calls == [(4, 8), (8, 8)]
    assert both.w.shape == (8, 512)
    assert np.array_equal(both.w[:4], first.w)
    assert not np.array_equal(both.w[4:], first.w)
    assert both.feat.shape == (8, 4096)
    assert both.feat.dtype == np.float16
    assert np.isnan(both.landmarks).all((1, 2)).sum() == 4
    generator = context.network("generator", "tiny")
    z = torch.from_numpy(samples.draw(3, 1))
    assert np.allclose(both.w[4:], generator.map(z, 0.8).numpy(), atol=1e-5)


def test_samples_of_another_seed_are_not_mixed_in(context, tmp_path):
    samples.collect(context, tmp_path, 4, seed=3)
    with pytest.raises(Refused, match="contains samples of"):
        samples.collect(context, tmp_path, 4, seed=4)
    assert json.loads((tmp_path / "samples.json").read_text())["seed"] == 3


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(Refused, match="no samples"):
        samples.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("00000.npz", data) for data in (b"", b"x" * 100, b"PK\x03\x04", b"\x93NUMPY\x01\x00")),
        *(("samples.json", data) for data in (b"", b"[5]", b"{", b"\xff\xfe{", b"null")),
    ],
)
def test_damaged_files_are_named(context, tmp_path, name, content):
    samples.collect(context, tmp_path, 4, seed=3)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=rf"{name}: it is damaged: .*; delete it") as refusal:
        samples.load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_shard_that_ends_early_is_named(context, tmp_path):
    samples.collect(context, tmp_path, 4, seed=3)
    file = tmp_path / "00000.npz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(Refused, match="it is damaged"):
        samples.collect(context, tmp_path, 4, seed=3)


def test_samples_with_a_former_fingerprint_are_refused_with_a_way_out(context, tmp_path):
    samples.collect(context, tmp_path, 4, seed=3)
    card = tmp_path / "samples.json"
    now = card.read_text()
    card.write_text(json.dumps(json.loads(now) | {"generator_weights": "cb7babc3764a"}))
    with pytest.raises(Refused, match=r"write \{\} in its place; .*--reuse, .*--cache") as refusal:
        samples.collect(context, tmp_path, 4, seed=3)
    assert str(card) in str(refusal.value)
    assert samples.load(tmp_path).w.shape == (4, 512)
    card.write_text(now)
    assert samples.collect(context, tmp_path, 4, seed=3).w.shape == (4, 512)


def test_the_shipped_directions_were_fitted_on_the_shipped_generator(models) -> None:
    about = yaml.safe_load(
        (resources.files("dhr_batch.configs") / "edits/landmarks.yaml").read_text()
    )
    name = about["samples"]["generator"]
    fingerprint = weights_of_generator(name)
    assert set(fingerprint) == {"mobilestylegan-256", "mobilestylegan-ffhq"}
    for model in fingerprint:
        # Verifies that the files have the checksums of the fingerprint.
        models(model)
    assert about["samples"]["generator_weights"] == fingerprint
    assert about["calibrated_on"]["generator_weights"] == fingerprint
