"""Ids of faces: format and parse are inverse, whatever photographs are called."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dhr_batch.stages.faces import face_id, looks_like_a_face, parsed

TRICKY = st.lists(st.sampled_from(["a", "#", "\n", "#1", "#12", "#0", ".png"]), min_size=1)
NAMES = st.one_of(st.text(min_size=1), TRICKY.map("".join))


@given(st.sets(NAMES, min_size=1, max_size=8), st.integers(0, 99))
def test_format_and_parse_are_inverse(names: set[str], number: int) -> None:
    """For photographs of which none looks like a face of another, which the plan refuses."""
    photographs = {name for name in names if looks_like_a_face(name) not in names}
    ids = {}
    for photograph in photographs:
        for k in (0, number):
            assert parsed(face_id(photograph, k), photographs) == (photograph, k)
            assert ids.setdefault(face_id(photograph, k), (photograph, k)) == (photograph, k)
