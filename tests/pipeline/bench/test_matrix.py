"""What a matrix expands to, what is refused, and how figures are ranked."""

from __future__ import annotations

import math

import pytest

from dhr_batch.pipeline.bench import matrix
from dhr_batch.pipeline.bench import text as bench_text
from dhr_batch.pipeline.bench.ranking import marks
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import config
from dhr_batch.tests.pipeline.benched import tiny


def test_a_matrix_becomes_runs_with_names():
    found = tiny("photos", seeds=[0, 3], refiners={"dhr": {"settings": {"refine": "dhr"}}})
    cells = matrix.expand(found, {"photos": "photos"})
    assert [c.name for c in cells] == [
        "photos-w+-none",
        "photos-w+-dhr",
        "photos-w+-none-seed3",
        "photos-w+-dhr-seed3",
    ]
    assert [c.base for c in cells] == ["", "photos-w+-none", "", "photos-w+-none-seed3"]
    assert cells[0].settings["refine"] == {"name": "none"}
    assert cells[1].begins_at == "refine"
    assert cells[3].settings["seed"] == 3
    assert cells[3].settings["edit"]["edits"][0]["label"] == "darkness"


def test_a_refiner_begins_where_its_settings_do_and_may_choose_embedders():
    embedders = {"a": {"settings": {"embed": "w"}}, "b": {"settings": {"embed": "w+"}}}
    refiners = {
        "masked": {"settings": {"segment": {"error": False}, "refine": "dhr"}},
        "only_b": {"settings": {"refine": "pti"}, "embedders": ["b"]},
    }
    cells = matrix.expand(
        tiny("d", embedders=embedders, refiners=refiners, compare_to="none"), {"d": "d"}
    )
    assert [c.name for c in cells] == [
        "d-a-none",
        "d-a-masked",
        "d-b-none",
        "d-b-masked",
        "d-b-only_b",
    ]
    assert cells[1].begins_at == "segment"


def test_entries_may_differ_between_generators_or_be_left_out():
    found = tiny(
        "d",
        generators=["/nets/my net.safetensors", "tiny"],
        embedders={
            "a": {"settings": {"embed": {"name": "w", "steps": 1}}, "by_generator": {"tiny": None}},
            "b": {"settings": {"embed": {"name": "w+", "steps": 1}}},
        },
        refiners={
            "r": {
                "settings": {"refine": "dhr"},
                "by_generator": {"my net": {"segment": {"bgr": True}}},
            },
            "s": {"settings": {"refine": "pti"}, "by_generator": {"my net": None}},
        },
        compare_to="none",
    )
    cells = {c.name: c for c in matrix.expand(found, {"d": "d"})}
    assert [*cells] == [
        "d-my_net-a-none",
        "d-my_net-a-r",
        "d-my_net-b-none",
        "d-my_net-b-r",
        "d-tiny-b-none",
        "d-tiny-b-r",
        "d-tiny-b-s",
    ]
    assert cells["d-my_net-a-r"].settings["generator"] == "/nets/my net.safetensors"
    assert cells["d-my_net-a-r"].generator == "my net"
    starts = {name: c.begins_at for name, c in cells.items() if c.refiner == "r"}
    assert [*starts.values()] == ["segment", "segment", "refine"]
    assert "bgr" not in cells["d-tiny-b-r"].settings["segment"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"refiner": {}}, r"test: unknown setting refiner; did you mean 'refiners'\?"),
        ({"refiners": {"a b": {}}}, "'a b' cannot be part of a folder's name"),
        ({"refiners": {"none": {}}}, "'none' is part of every benchmark"),
        (
            {"compare_to": "pti"},
            r"compare_to: 'pti' is unknown; choose from: none, dhr, no_mask, fails, w\+/none, "
            r"w\+/dhr",
        ),
        ({"compare_to": "w/dhr"}, "compare_to: 'w/dhr' is unknown"),
        (
            {"compare_to": "w+/dhr", "refiners": {"dhr": {"embedders": []}}},
            r"compare_to: 'w\+/dhr' is unknown; choose from: none, dhr, w\+/none$",
        ),
        ({"refiners": {"dhr": {"embedders": ["e4e"]}}}, "refiners.dhr.embedders: 'e4e' is unknown"),
        ({"refiners": {"dhr": {"settings": {"embed": "w"}}}}, "embed would change the embedding"),
        ({"refiners": {"dhr": {"settings": {"preset": "pti"}}}}, "preset would change the embedd"),
        (
            {"refiners": {"dhr": {"by_generator": {"tiny": {"embed": "w"}}}}},
            "refiners.dhr: embed would change the embedding",
        ),
        ({"generators": ["a/x.safetensors", "b/x.safetensors"]}, "generators: one is given twice"),
        ({"settings": {"limit": 3}}, "settings: limit cannot be set for all runs"),
        ({"seeds": [1, 1]}, "given twice"),
        ({"datasets": []}, "datasets"),
        ({"edits": []}, "edits"),
    ],
)  # fmt: skip
def test_a_wrong_matrix_is_refused(change, message):
    with pytest.raises(Refused, match=message):
        tiny("photos", **change)


def test_shipped_benchmarks_are_valid():
    shipped = "ablations, edits, end-to-end, occluders, paper, refine-speed, refiners, smoke"
    assert ", ".join(matrix.shipped_names()) == shipped
    for name in matrix.shipped_names():
        found = matrix.shipped_matrix(name)
        cells = matrix.expand(found, {d: d for d in found.datasets})
        for cell in cells:
            config.resolve(config.build([{"dataset": cell.dataset}, cell.settings]), 0, 1)
        assert len({c.name for c in cells}) == len(cells)
        methods = {(c.generator, c.embedder, c.refiner) for c in cells}
        held_to = {m: (m[0], *matrix.reference(found.compare_to, m[1])) for m in methods}
        # Every method has a difference, and references are held to themselves.
        assert set(held_to.values()) <= methods
        assert {m for m in methods if held_to[m] == m} == set(held_to.values())
    with pytest.raises(Refused, match=f"choose from: {shipped}"):
        matrix.shipped_matrix("all")


def test_published_tables_are_complete():
    found = bench_text.published()
    assert len(found) >= 4
    for table in found:
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert all((table.source, table.protocol, table.differs))


def test_published_figures_keep_their_digits():
    table = bench_text.published()[0]
    (e4e,) = (row for row in bench_text.texts(table) if row[1] == "e4e" and row[0] == "–")
    assert dict(zip(table.columns, e4e, strict=True))["identity_curricularface_cosine"] == "0.50"
    (psp,) = (row for row in bench_text.texts(table) if row[1] == "pSp")
    assert psp[-2:] == ["25.2540", "0.041"]


@pytest.mark.parametrize(
    ("values", "better", "expected"),
    [
        ((1.0, 3.0, 2.0), "higher", {1: "best", 2: "second"}),
        ((1.0, 3.0, 2.0), "lower", {0: "best", 2: "second"}),
        # Equal as they are shown.
        ((33.684, 33.681, 20.0), "higher", {0: "best", 1: "best", 2: "second"}),
        ((1.0, math.nan, 2.0), "higher", {0: "second", 2: "best"}),
        ((1.0, 1.0), "higher", {0: "best", 1: "best"}),
        ((1.0, 2.0), "", {}),
        ((1.0, math.nan), "lower", {}),
    ],
)
def test_best_and_second(values, better, expected):
    names = [f"m{i}" for i in range(len(values))]
    found = marks(dict(zip(names, values, strict=True)), better)
    assert found == {f"m{i}": mark for i, mark in expected.items()}
