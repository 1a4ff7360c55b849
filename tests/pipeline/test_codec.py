"""The int8 codec keeps its promise for every float32 tensor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dhr_batch.pipeline import codec

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
tensors = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=0, max_dims=4, max_side=6), elements=finite
)


@given(tensors)
@settings(max_examples=200, deadline=None)
def test_error_is_at_most_half_a_scale(tensor: np.ndarray) -> None:
    scales, data = codec.encode(tensor)
    decoded = codec.decode(scales, data, tensor.shape)
    step = scales.astype(np.float64)
    if tensor.ndim > 1:
        step = step.reshape(-1, *[1] * (tensor.ndim - 1))
    error = np.abs(decoded.astype(np.float64) - tensor)
    # The product of decoding is rounded to float32 once: 2**-24 of at most 127 scales.
    assert (error <= step * (0.5 + 2**-16)).all()
    assert (decoded[tensor == 0] == 0).all()
    assert decoded.dtype == np.float32
    assert decoded.shape == tensor.shape


def test_each_output_channel_has_its_own_scale() -> None:
    tensor = np.array([[127.0, -12.7], [0.0, 0.0], [1.27, 0.01]], np.float32)
    scales, data = codec.encode(tensor)
    np.testing.assert_allclose(scales, [1.0, 0.0, 0.01], rtol=1e-6)
    assert np.frombuffer(data, np.int8).tolist() == [127, -13, 0, 0, 127, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_rejected(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.encode(np.array([1.0, bad], np.float32))


def test_sizes_that_disagree_are_rejected() -> None:
    scales, data = codec.encode(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="do not make a tensor"):
        codec.decode(scales, data, (3, 3))
