"""Direction files that others wrote. Each test names the folder of the case that it comes from."""

from __future__ import annotations

import tracemalloc
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dhr_batch.stages.edit import direction_files, ganspace, styleclip
from dhr_batch.stages.edit.direction_files import DirectionError
from dhr_batch.tests.fuzz_seeds import npy

START = "{'descr': '<f4', 'fortran_order': False, 'shape': "
NPY = {
    "direction_files_uncaught, hugeshape": (npy(START + "(1000000000000, 512), }"), "no generator"),
    "direction_files_uncaught, tokens": (npy(START + "(512L, "), "cannot be read as .npy"),
    "direction_files_uncaught, nested": (npy("(" * 5000), "cannot be read as .npy"),
    "direction_files_uncaught, cut": (npy(START + "(1, 512), }", b"abc"), "ends before the 2048"),
    "direction_files_uncaught, negative": (npy(START + "(-1, 512), }"), "no generator"),
    "direction_files_uncaught, objects": (npy(START.replace("<f4", "|O") + "(512,), }"), "object"),
    "direction_files_uncaught, text": (npy(START.replace("<f4", "<U9") + "(512,), }"), "<U9"),
    "direction_files_uncaught, version": (b"\x93NUMPY\x09\x00\x10\x00" + b" " * 16, "format"),
}


@pytest.mark.parametrize("case", NPY)
def test_damaged_arrays_are_refused(tmp_path: Path, case: str) -> None:
    content, said = NPY[case]
    file = tmp_path / "it.npy"
    file.write_bytes(content)
    with pytest.raises(DirectionError, match=said) as caught:
        direction_files.read(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [65, 40_000])
def test_an_archive_is_refused_by_its_shape(tmp_path: Path, rows: int) -> None:
    """Case `npz_bomb`: the numbers are not unpacked."""
    file = tmp_path / "zeros.npz"
    np.savez_compressed(file, a=np.zeros((rows, 512), np.float32))
    tracemalloc.start()
    with pytest.raises(DirectionError, match=rf"shape \[{rows}, 512\] is not a direction"):
        direction_files.read(str(file))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_components_and_features_are_refused_by_their_shapes(tmp_path: Path) -> None:
    """Case `npz_bomb`: the other files of arrays."""
    zeros = np.zeros((40_000, 512), np.float32)
    file = tmp_path / "zeros.npz"
    np.savez_compressed(file, mean=zeros, comp=zeros, std=zeros, target=zeros, neutral=zeros)
    with zipfile.ZipFile(file) as archive:
        (tmp_path / "zeros.npy").write_bytes(archive.read("mean.npy"))
    del zeros
    tracemalloc.start()
    with pytest.raises(DirectionError, match="too large"):
        ganspace.read(file)
    with pytest.raises(DirectionError, match=r"shape \[512\], not \[40000, 512\]"):
        styleclip.read_features(file)
    with pytest.raises(DirectionError, match=r"\[5376, 512\], not \[40000, 512\]"):
        styleclip.read_relevance(tmp_path / "zeros.npy")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(512, device="meta"), "holds a _rebuild_meta"),
        (torch.ones(512).to_sparse(), "holds a _rebuild_sparse"),
        (torch.ones(1).expand(10**6, 512), "repeats a storage"),
        (torch.ones(1).expand(65, 512), "no generator has 65 rows"),
        (torch.ones(512, dtype=torch.complex64), "an array of complex64"),
        (Namespace(a=1), "holds a Namespace"),
        (np.array(["x"]), "holds a _reconstruct"),
    ],
)
def test_torch_files_that_are_no_directions(tmp_path: Path, value: Any, said: str) -> None:
    """Case `direction_files_uncaught`: meta.pt, sparse.pt."""
    torch.save(value, tmp_path / "it.pt")
    with pytest.raises(DirectionError, match=said) as caught:
        direction_files.read(str(tmp_path / "it.pt"))
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_an_array_of_numpy_in_a_file_of_torch_is_read(tmp_path: Path, kind: type) -> None:
    """Case `direction_numpy_in_pt`."""
    torch.save(np.arange(512, dtype=kind), tmp_path / "it.pt")
    found = direction_files.read(str(tmp_path / "it.pt")).array
    assert np.array_equal(found, np.arange(512))


def test_a_column_of_a_tensor_is_read(tmp_path: Path) -> None:
    torch.save(torch.arange(1024.0).reshape(512, 2)[:, 1], tmp_path / "it.pt")
    found = direction_files.read(str(tmp_path / "it.pt")).array
    assert np.array_equal(found, np.arange(1, 1024, 2))
