"""The texts that name edits, and the settings they stand for."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhr_batch.stages.edit import syntax
from dhr_batch.stages.edit.syntax import NotAnEdit, Term, parse, parse_all

NAMES = st.text(string.ascii_letters + string.digits + "_./#-~ é", min_size=1).filter(
    lambda name: name == name.strip()
)
# As printed in tables, with six digits.
STRENGTHS = st.floats(allow_nan=False, allow_infinity=False).map(lambda x: float(f"{x:g}") + 0.0)
TERMS = st.builds(Term, NAMES, STRENGTHS.filter(math.isfinite), st.sampled_from(["", "deg"]))
PICTURES = st.lists(TERMS, min_size=1, max_size=4, unique_by=lambda term: term.name).map(tuple)


@given(PICTURES)
def test_terms_are_read_as_they_are_written(terms):
    text = syntax.joined(terms)
    assert parse(text) == terms
    assert parse_all(text) == [terms]
    assert parse(text.replace("=", " = ").replace("+", " + ").replace("e + ", "e+")) == terms
    assert syntax.names_all(text, 1) == (len(terms) > 1)
    assert not syntax.names_all(text, 2)


@given(PICTURES, st.lists(st.floats(-9, 9).map(lambda x: round(x, 3)), min_size=1, unique=True))
def test_each_strength_of_a_term_is_a_picture(terms, strengths):
    first = [Term(terms[0].name, strength + 0.0) for strength in strengths]
    many = f"{terms[0].name}={','.join(f'{s:g}' for s in strengths)}"
    found = parse_all(syntax.joined([many, *terms[1:]]))
    assert found == [(term, *terms[1:]) for term in dict.fromkeys(first)]


@given(st.text(max_size=30))
def test_a_text_is_read_or_refused(text):
    try:
        pictures = parse_all(text)
    except NotAnEdit:
        return
    for terms in pictures:
        for term in terms:
            assert term.name
            assert math.isfinite(term.strength)
            assert term.unit in ("", "deg")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smile=1+age=10", [[("smile", 1, ""), ("age", 10, "")]]),
        ("yaw=-15deg", [[("yaw", -15, "deg")]]),
        ("yaw=-1,15deg", [[("yaw", -1, "")], [("yaw", 15, "deg")]]),
        ("yaw=-15deg:15deg:3", [[("yaw", s, "deg")] for s in (-15, 0, 15)]),
        ("a=1,2+b=3,4", [[("a", a, ""), ("b", b, "")] for a in (1, 2) for b in (3, 4)]),
        ("smile=+1e+0+age=-1e1", [[("smile", 1, ""), ("age", -10, "")]]),
        ("a+b.npy=2", [[("a+b.npy", 2, "")]]),
        ("set.npz#x=y=1+smile=2", [[("set.npz#x=y", 1, ""), ("smile", 2, "")]]),
    ],
)
def test_examples(text, expected):
    assert [[tuple(term) for term in terms] for terms in parse_all(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "smile", "=1", "smile=", "smile=x", "smile=1,", "smile=nan", "smile=1e999"),
        *(
            "smile=1:2",
            "smile=1:2:1",
            "a=1:1:1,5",
            "a=0:1:1001",
            f"a=0:1:{'9' * 5000}",
            "smile=1+",
            "smile=1+age",
        ),
        *("yaw=1deg:2:3", "yaw=15 deg", "yaw=15degrees", "smile=1+smile=2"),
    ],
)
def test_other_texts_are_refused(text):
    for read in (parse, parse_all):
        with pytest.raises(NotAnEdit):
            read(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("smile=0:0:1", "count of at least 2; give more, or one strength alone: NAME=0"),
        ("yaw=1deg:2:3", "one end of a range has the unit deg"),
        ("smile=-2:2:100000000000", "more than 500 pictures"),
        ("smile=-2:2:30+age=-9:9:30", "more than 500 pictures"),
    ],
)
def test_wrong_ranges_have_reasons_of_their_own(text, reason):
    with pytest.raises(NotAnEdit, match=reason):
        parse_all(text)
    assert len(parse_all("smile=-2:2:25+age=-9:9:20")) == 500


def test_a_wrong_strength_is_answered_with_examples():
    with pytest.raises(NotAnEdit) as refused:
        parse_all("smile=two")
    assert refused.value.way_out.startswith("a strength is a number; write for example smile=2, ")


def test_one_picture_has_one_strength_of_each_edit():
    with pytest.raises(NotAnEdit, match="form NAME=STRENGTH; "):
        parse("smile=1,2")


def test_pictures_of_one_edit_share_its_settings():
    pictures = [
        p for text in ("a=1", "a=2+b=1", "a=1,3", "a=1deg", "a=2+b=1") for p in parse_all(text)
    ]
    assert syntax.settings(pictures) == [
        {"direction": "a", "strengths": [1, 3]},
        {"direction": "a", "unit": "deg", "strengths": [1]},
        {"combined": [{"direction": "a", "strengths": [2]}, {"direction": "b", "strengths": [1]}]},
    ]
