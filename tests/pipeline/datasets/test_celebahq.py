"""CelebA-HQ: its test split from the published mapping, and its attributes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhr_batch.pipeline.datasets import celebahq
from dhr_batch.pipeline.datasets.items import DatasetError
from dhr_batch.tests.pipeline.listed import celeba, content, listed


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))


def test_the_test_split_is_computed_from_the_mapping(tmp_path: Path) -> None:
    root = celeba(tmp_path / "CelebAMask-HQ", [182_637, 182_638, 5, 202_598, 182_639])
    for place in (root, root / "CelebA-HQ-img"):
        found = content(listed("celebahq", root=str(place)))
        assert found == {"1.jpg": b"\1", "3.jpg": b"\3", "4.jpg": b"\4"}
    (root / "CelebA-HQ-img" / "77.jpg").write_bytes(b"x")
    with pytest.raises(DatasetError, match="no line for an image '77'"):
        listed("celebahq", root=str(root))


def test_all_images_without_the_mapping_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celebahq, "TEST_IMAGES", 2)
    root = celeba(tmp_path / "CelebAMask-HQ", [1, 2, 3])
    (root / celebahq.MAPPING).unlink()
    with pytest.raises(
        DatasetError, match=r"contains 3 images.*2; put CelebA-HQ-to-CelebA-mapping"
    ):
        listed("celebahq", root=str(root))
    (root / "CelebA-HQ-img" / "2.jpg").unlink()
    assert list(content(listed("celebahq", root=str(root)))) == ["0.jpg", "1.jpg"]


_blank = st.sampled_from([" ", "\t", "   ", "\t \t"])


@given(
    st.dictionaries(st.integers(0, 40_000), st.integers(0, 202_599)),
    _blank,
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_mapping_is_read_back(table: dict[int, int], blank: str, head: bool, end: str) -> None:
    lines = [f"{n}{blank}{original}{blank}{original:06d}.jpg" for n, original in table.items()]
    text = end.join(["idx     orig_idx  orig_file"] * head + lines + [""])
    assert celebahq.parse_mapping(text, "mapping") == table


@given(st.text())
def test_mapping_raises_nothing_but_its_own_error(text: str) -> None:
    with suppress(DatasetError):
        celebahq.parse_mapping(text, "mapping")


@pytest.mark.parametrize("line", [f"1 {'9' * 5000} a.jpg", "\u0661 \u0662 a.jpg", "1 2a.jpg"])
def test_other_numbers_are_refused(line: str) -> None:
    with pytest.raises(DatasetError, match=r"m\.txt, line 2: expected 'idx orig_idx orig_file'"):
        celebahq.parse_mapping(f"idx orig_idx\n{line}", "m.txt")


def test_a_mapping_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    root = celeba(tmp_path / "CelebAMask-HQ", [1, celebahq.FIRST_TEST])
    mapping = root / celebahq.MAPPING
    mapping.write_bytes(b"\xef\xbb\xbf" + mapping.read_bytes())
    assert list(content(listed("celebahq", root=str(root)))) == ["1.jpg"]


def test_two_lines_for_an_image_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"m\.txt, line 3: it is a second line for image 7"):
        celebahq.parse_mapping("idx orig_idx\n7 1\n7 2", "m.txt")


_ATTRIBUTES = "3\nMale Smiling\n0.jpg  -1  1 \n1.jpg   1 -1\n29999.jpg 1 1\n"


def test_attributes_are_read_by_name() -> None:
    found = celebahq.parse_attribute(_ATTRIBUTES, "file", "Smiling")
    assert found == {"0": True, "1": False, "29999": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_ATTRIBUTES.replace("Smiling", "Young"), "no attribute 'Smiling'; choose from: Male, Y"),
        ("", "no attribute 'Smiling'; choose from: none"),
        (_ATTRIBUTES.replace("1 -1", "1 0"), "file, line 4: expected a file and 2 times 1 or -1"),
        (_ATTRIBUTES + "1.png 1 1\n", "file, line 6: it is a second line for image 1"),
        (_ATTRIBUTES.replace("1 -1", "-1"), "file, line 4: expected a file and 2 times"),
    ],
)
def test_other_attribute_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        celebahq.parse_attribute(text, "file", "Smiling")
