"""The report in Chromium as a phone shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dhr_batch.pipeline.report.page import Column, Section, Shown, Table
from dhr_batch.tests.pipeline.chromium import Chromium
from dhr_batch.tests.pipeline.pages import COLUMNS, SMALL, page_of, save

# Elements that scroll sideways, or end right of the window, of those that are seen.
WIDE = """[...document.querySelectorAll("body *")].filter(e => {
    const seen = e.checkVisibility() && !e.closest(".heads, .skip, svg");
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
    const box = e.getBoundingClientRect();
    return seen && ((scrolls && e.scrollWidth > e.clientWidth) || box.right > innerWidth + 0.5);
}).map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture
def phone(chromium: Chromium, tmp_path: Path) -> Iterator[Chromium]:
    """A page with many pictures and wide tables, on a phone."""
    page = page_of(SMALL)
    columns = (*COLUMNS, *(f"smile {n}" for n in range(5)))
    (gallery,) = [s.gallery for s in page.sections if s.gallery]
    heads = [Column("method"), *(Column(f"identity distance {n}", number=True) for n in range(9))]
    cells = [[f"m{n}", *[Shown(0.5, "0.500 [0.400, 0.600]")] * 9] for n in range(4)]
    sections = [
        Section("images", "Images", gallery=replace(gallery, columns=columns)),
        Section("wide", "Wide", tables=[Table("Wide", heads, cells)]),
        page.sections[0],
    ]
    path = save(replace(page, sections=sections), tmp_path / "index.html", 4000)
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    chromium.call("Emulation.setDeviceMetricsOverride", **metrics)
    chromium.call("Emulation.setTouchEmulationEnabled", enabled=True)
    chromium.open(path)
    chromium.settle()
    chromium.settle()
    yield chromium
    chromium.call("Emulation.setTouchEmulationEnabled", enabled=False)
    chromium.call("Emulation.clearDeviceMetricsOverride")
    assert chromium.errors == []


def test_nothing_scrolls_sideways_on_a_phone(phone: Chromium) -> None:
    assert phone.run(WIDE) == []
    phone.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    phone.settle()
    phone.settle()
    assert phone.run(WIDE) == []
    table = "document.querySelector('#wide table')"
    assert phone.run(f"{table}.className") == "stacked"
    label = f"getComputedStyle({table}.tBodies[0].rows[0].cells[3], '::before').content"
    assert "identity distance 2" in phone.run(label)
    # It is a table for screen readers nevertheless.
    nodes = phone.call("Accessibility.getFullAXTree")["nodes"]
    roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
    assert roles.count("cell") >= 40
    assert roles.count("gridcell") == SMALL * 9
    assert phone.run("document.querySelector('#metrics table').className") == ""


def test_a_tap_shows_the_picture(phone: Chromium) -> None:
    picture = "document.querySelectorAll('#gallery img')[2].getBoundingClientRect()"
    x, y = phone.run(f"(r => [r.x + 40, r.y + 40])({picture})")
    assert 0 < y < 844, "the first pictures are on the first screen"
    phone.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    phone.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    phone.settle()
    assert phone.run("zoom.open")
    assert phone.run("zoom.querySelector('img').alt") == "people/0000.png: refined"
    picture = "zoom.querySelector('img').getBoundingClientRect()"
    left, right = phone.run(f"(r => [r.left, r.right])({picture})")
    assert 0 <= left < right - 300 <= 90
    assert phone.run(WIDE) == []
    phone.run("zoom.querySelector('[data-close]').click()")
    phone.settle()
