"""Generators with filled weights."""

import pytest

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2, config_f
from dhr_batch.tests.stages.channels import fill, no_models


@pytest.fixture(scope="module")
def mobile():
    return Context("cpu", "tiny", no_models).network("generator", "tiny")


@pytest.fixture(scope="module")
def small():
    """A narrow StyleGAN2 of 32 px with filled weights."""
    return fill(StyleGAN2((12, 10, 8, 6), mapping_layers=2))


@pytest.fixture(scope="module")
def large():
    """StyleGAN2 with the published widths at 1024 px and filled weights, which never renders."""
    return fill(StyleGAN2(config_f(1024), mapping_layers=1))
