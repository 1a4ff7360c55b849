"""What the delta codec promises: every value of every finite tensor within half a step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dhr_batch.pipeline.tables import codec
from dhr_batch.pipeline.tables.codec import Encoded
from dhr_batch.stages.tensors import feature_mask, masks_to_tensor

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
tensors = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=0, max_dims=4, max_side=6), elements=finite
)
steps = st.one_of(st.just(0.0), st.floats(1e-30, 1e30))
# float32 rounds the step, and the value that it makes.
HALF = 0.5 + 2**-8


def close(decoded: np.ndarray, tensor: np.ndarray, encoded: Encoded) -> bool:
    error = np.abs(decoded.astype(np.float64) - tensor)
    rounding = np.abs(tensor.astype(np.float64)) * 2**-22
    return bool((error <= float(encoded.scales[0]) * HALF + rounding).all())


@given(tensors, steps)
@settings(max_examples=200)
def test_a_weight_is_within_half_a_step(tensor: np.ndarray, wanted: float) -> None:
    encoded = codec.encode_weight(tensor, wanted)
    decoded = codec.decode(encoded, tensor.shape)
    assert close(decoded, tensor, encoded)
    assert decoded.dtype == np.float32
    assert decoded.shape == tensor.shape
    np.testing.assert_array_equal(codec.rounded_weight(tensor, wanted), decoded)
    again = codec.encode_weight(tensor, wanted)
    assert again.data == encoded.data
    assert again.scales == encoded.scales


@st.composite
def features(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=7))
    feature = draw(hnp.arrays(np.float32, shape, elements=finite))
    return feature, draw(hnp.arrays(np.bool_, shape[1:]))


@given(features(), steps)
@settings(max_examples=200)
def test_a_feature_is_within_half_a_step_where_it_is_kept(
    made: tuple[np.ndarray, np.ndarray], wanted: float
) -> None:
    feature, kept = made
    encoded = codec.encode_feature(feature, kept, wanted)
    decoded = codec.decode(encoded, feature.shape)
    assert close(decoded[:, kept], feature[:, kept], encoded)
    assert (decoded[:, ~kept] == 0).all()
    np.testing.assert_array_equal(codec.rounded_feature(feature, kept, wanted), decoded)
    assert decoded.dtype == np.float32
    assert codec.encode_feature(feature, kept, wanted).data == encoded.data


def test_the_step_is_the_one_wanted_and_finer_for_few_values() -> None:
    draw = np.random.default_rng(0)
    for count, step in ((2**14, 0.25), (2**14 - 1, 0.0625)):
        encoded = codec.encode_weight(draw.normal(size=count), 0.25)
        assert encoded.scales.tolist() == [step]
    feature = draw.normal(size=(2, 3, 4))
    assert codec.encode_feature(feature, np.ones((3, 4), bool), 0.25).scales.tolist() == [0.25]


def test_without_a_step_sixteen_bits_are_kept() -> None:
    heavy = np.random.default_rng(0).standard_t(2, 4096).astype(np.float32)
    encoded = codec.encode_weight(heavy, 0.0)
    error = codec.decode(encoded, heavy.shape) - heavy
    assert encoded.scales[0] == pytest.approx(np.abs(heavy).max() / 32000)
    assert 10 * np.log10((heavy**2).mean() / (error**2).mean()) > 60


def test_an_offset_far_below_the_step_is_there_on_average() -> None:
    """Plain rounding would make it 0, an error that moves the image as a whole."""
    offset = np.full((256, 256), 0.05, np.float32)
    decoded = codec.decode(codec.encode_weight(offset, 1.0), offset.shape)
    # A uniform error of one step: standard deviation 0.289, of the mean of 65,536 values 0.0011.
    assert decoded.mean() == pytest.approx(0.05, abs=0.005)
    assert decoded.std() == pytest.approx(12**-0.5, rel=0.02)
    rows = decoded.mean(1) - 0.05
    assert rows.std() < 2 * 0.289 / 16
    neighbours = np.corrcoef(decoded[:, 1:].ravel(), decoded[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.02


def test_zeros_stay_zeros() -> None:
    encoded = codec.encode_weight(np.zeros((300, 300), np.float32), 0.1)
    assert (codec.decode(encoded, (300, 300)) == 0).all()
    assert _compressed(encoded.data) < 100


def test_a_smooth_feature_is_small() -> None:
    y, x = np.mgrid[:32, :32] / 4
    smooth = np.stack([np.sin(x + y + phase) for phase in range(8)]).astype(np.float32)
    rough = np.random.default_rng(0).permuted(smooth.reshape(8, -1), axis=1).reshape(smooth.shape)
    kept = np.ones((32, 32), bool)
    sizes = [_compressed(codec.encode_feature(f, kept, 0.02).data) for f in (smooth, rough)]
    assert sizes[0] < 0.6 * sizes[1]


def test_only_kept_cells_take_room() -> None:
    feature = np.random.default_rng(0).normal(size=(64, 16, 16)).astype(np.float32)
    kept = np.zeros((16, 16), bool)
    nothing = codec.encode_feature(feature, kept, 0.1)
    assert nothing.data == b""
    assert (codec.decode(nothing, feature.shape) == 0).all()
    kept[:4] = True
    quarter = codec.encode_feature(feature, kept, 0.1)
    full = codec.encode_feature(feature, np.ones((16, 16), bool), 0.1)
    assert _compressed(quarter.data) < 0.3 * _compressed(full.data)


@given(hnp.arrays(np.bool_, (16, 16)))
def test_the_kept_cells_are_those_that_the_mask_lets_through(mask: np.ndarray) -> None:
    soft = feature_mask(masks_to_tensor([mask]), (4, 4))[0, 0]
    assert torch.equal(torch.from_numpy(codec.used_cells(mask, (4, 4))), soft < 1)


def test_every_cell_is_kept_where_nobody_knows() -> None:
    assert codec.used_cells(None, (4, 4)).all()
    assert codec.used_cells(np.ones((6, 6), bool), (4, 4)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_rejected(bad: float) -> None:
    tensor = np.array([[[1.0, bad]]], np.float32)
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.encode_weight(tensor, 0.1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.encode_feature(tensor, np.zeros((1, 2), bool), 0.1)


@given(
    hnp.arrays(
        st.sampled_from(["float16", "float32", "float64", "uint8", "int64", ">f4"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    )
)
def test_exact_values_come_back_bit_for_bit(values: np.ndarray) -> None:
    dtype = str(values.dtype.newbyteorder("="))
    back = codec.decode(codec.encode_exact(values), values.shape, dtype)
    assert back.dtype == dtype
    assert back.tobytes() == values.astype(dtype).tobytes()


def test_sizes_that_disagree_and_unknown_schemes_are_rejected() -> None:
    for wanted in (0.1, 0.0):
        encoded = codec.encode_weight(np.arange(30.0), wanted)
        for shape in ((31,), (20,), (300,)):
            with pytest.raises(ValueError, match="do not fit a tensor"):
                codec.decode(encoded, shape)
    with pytest.raises(ValueError, match=r"unknown scheme 'jpeg'.*newer version of dhr-batch"):
        codec.decode(encoded._replace(scheme="jpeg"), (30,))


def test_older_runs_are_read() -> None:
    levels = np.array([[127, -13], [0, 0], [127, 1]], np.int8)
    old = Encoded("int8_channel", np.array([1.0, 0.0, 0.01], np.float32), levels.tobytes())
    expected = [[127.0, -13.0], [0.0, 0.0], [1.27, 0.01]]
    np.testing.assert_allclose(codec.decode(old, (3, 2)), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="do not fit a tensor"):
        codec.decode(old, (3, 3))


def documented(root: Path) -> dict[str, Any]:
    """The functions of docs/reference/deltas.md, without the loop that reads a run."""
    text = (root / "docs" / "reference" / "deltas.md").read_text("utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(snippet.partition("\nfor row in pq")[0], found)
    return found


def test_the_documented_reader_agrees(root: Path) -> None:
    """With several digits a byte, one, and two bytes a digit."""
    reader, draw = documented(root), np.random.default_rng(0)
    weight = draw.normal(size=(129, 127)).astype(np.float32)
    kept = draw.random((8, 8)) < 0.7
    feature = draw.normal(size=(5, 8, 8)).astype(np.float32)
    bases = set()
    for wanted in (16.0, 9.0, 2.0, 0.5, 0.02, 0.002):
        pairs = (
            (weight, codec.encode_weight(weight, wanted), "weight"),
            (feature, codec.encode_feature(feature, kept, wanted), "feature"),
        )
        for tensor, encoded, kind in pairs:
            row = {"kind": kind, "shape": list(tensor.shape)} | encoded._asdict()
            expected = codec.decode(encoded, tensor.shape)
            np.testing.assert_allclose(reader["tensor"](row), expected, rtol=1e-6, atol=1e-7)
            bases.add(encoded.base)
    assert {3, 5} < bases
    for low, high in ((7, 15), (17, 255), (257, 65793)):
        assert any(low <= base <= high for base in bases if base), bases


def test_the_documented_reader_reads_exact_values(root: Path) -> None:
    values = np.arange(6, dtype=np.float16).reshape(2, 3) / 3
    about = {"kind": "state", "shape": [2, 3], "dtype": "float16"}
    found = documented(root)["tensor"](about | codec.encode_exact(values)._asdict())
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, values)


def test_the_documented_reader_knows_older_runs(root: Path) -> None:
    scales, levels = np.array([0.5, 2.0], np.float32), np.arange(-6, 6, dtype=np.int8)
    old = codec.Encoded("int8_channel", scales, levels.tobytes())
    row = {"kind": "feature", "shape": [2, 3, 2]} | old._asdict()
    expected = codec.decode(old, (2, 3, 2))
    np.testing.assert_array_equal(documented(root)["tensor"](row), expected)
    assert expected[1, 2, 1] == 10


def _compressed(data: bytes) -> int:
    return len(pa.Codec("zstd", 1).compress(data, asbytes=True))
