"""Extractors of features against the networks they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from dhr_batch.pipeline.models import catalogue
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks import features


def noise(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)


@pytest.fixture(scope="module")
def published(tmp_path_factory, fill):
    """A file of the layout that torch-fidelity publishes, with random numbers in it."""
    file = tmp_path_factory.mktemp("models") / "inception-2015-12-05"
    layout: dict[str, tuple[int, ...]] = {}

    class Layout(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            layout.update({key: tuple(v.shape) for key, v in self.state_dict().items()})

    torch.save({}, file)
    Layout("layout", ["2048"], feature_extractor_weights_path=str(file))
    rules = (
        ("num_batches_tracked$", 0, 0, "zero"),
        ("running_var$", 0.1, 1, "abs"),
        (r"bn\.weight$", 0.1, 1, "n"),
        (r"\.weight$", "1.4/sqrt(fan_in)", 0, "n"),
        (".", 0.1, 0, "n"),
    )
    torch.save({k: torch.tensor(fill(k, shape, rules)) for k, shape in layout.items()}, file)
    return file


def test_inception_is_that_of_torch_fidelity(published):
    extractor = features.inception(Context("cpu", "tiny", lambda name: published.parent / name))
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(published)
    )
    for size in (32, 299, 400):
        found = extractor.extract(noise(size))
        (wanted,) = theirs(torch.tensor(noise(size)).permute(2, 0, 1)[None])
        assert found.shape == (2048,)
        assert found.std() > 0.01
        np.testing.assert_allclose(found, wanted[0].numpy(), atol=1e-5)


class Runs:
    def __reduce__(self):
        return print, ("code of a checkpoint was run",)


def test_a_file_with_code_is_refused_before_the_package_reads_it(tmp_path, capsys):
    torch.save({"code": Runs()}, tmp_path / "inception-2015-12-05")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        features.inception(Context("cpu", "tiny", tmp_path.joinpath))
    assert capsys.readouterr().out == ""


def test_missing_inception_names_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path))
    with pytest.raises(catalogue.ModelMissing, match="dhr-batch models pull inception-2015-12-05"):
        catalogue.path("inception-2015-12-05")


@pytest.mark.parametrize(("name", "size"), [("st_alex", 256), ("tiny", 32)])
def test_backbones_are_pooled_before_normalisation(name, size, models):
    context = Context("cpu", "tiny", models)
    found = getattr(features, name)(context).extract(noise(64))
    assert found.shape == (size,)
    assert found.dtype == np.float32
    perceptual = {"st_alex": "st_lpips_alex", "tiny": "tiny"}[name]
    network = context.network("perceptual", perceptual)
    x = torch.tensor(noise(64)).permute(2, 0, 1)[None] / 127.5 - 1 - network.shift
    for tap in network.taps:
        x = tap(x)
    np.testing.assert_allclose(found, x.mean((2, 3))[0].numpy(), rtol=1e-5)
