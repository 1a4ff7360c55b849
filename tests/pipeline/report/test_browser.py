"""The report as Chromium shows it, from a file: sorting, searching, keys, and 3,000 images."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhr_batch.pipeline.report import gallery as report_gallery
from dhr_batch.pipeline.report import page as report_page
from dhr_batch.pipeline.report import plots
from dhr_batch.pipeline.report.page import Gallery, GalleryItem, Page, Plot, Score, Section
from dhr_batch.pipeline.report.plots import Series
from dhr_batch.tests.pipeline.chromium import Chromium
from dhr_batch.tests.pipeline.pages import COLUMNS, SMALL, page_of, save

LARGE = 3000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(page_of(SMALL), tmp_path_factory.mktemp("small") / "index.html", 4000)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    most = report_gallery.PAGE_BYTES // (LARGE * len(COLUMNS))
    return save(page_of(LARGE), tmp_path_factory.mktemp("large") / "index.html", most)


@pytest.fixture
def tab(chromium: Chromium, small: Path) -> Iterator[Chromium]:
    """The small page, newly opened. Whatever a test does there, the console stays silent."""
    chromium.open(small)
    chromium.settle()
    yield chromium
    assert chromium.errors == []


def shown(tab: Chromium) -> list[int]:
    """Numbers of the images in the rows that exist, from top to bottom."""
    names = tab.run("[...document.querySelectorAll('#gallery .rows b')].map(e => e.textContent)")
    return [int(name.removeprefix("people/").removesuffix(".png")) for name in names]


def choose(tab: Chromium, **fields: str) -> None:
    for name, text in fields.items():
        found = f"document.querySelector('#controls [name={name}]')"
        option = f"[...f.options].find(o => o.text === {json.dumps(text)})"
        tab.run(
            f"(() => {{ const f = {found}; f.value = {option}.value;"
            "f.dispatchEvent(new Event('change', {bubbles: true})) })()"
        )
    tab.settle()


def focused(tab: Chromium) -> list[Any]:
    """Row and column of the cell that has the focus, as a screen reader counts them."""
    element = "document.activeElement"
    return [
        tab.run(f"{element}.parentElement.getAttribute('aria-rowindex')"),
        tab.run(f"{element}.getAttribute('aria-colindex')"),
    ]


def test_it_opens_from_disk_and_asks_for_nothing_else(tab: Chromium, small: Path) -> None:
    outside = [url for url in tab.requests if not url.startswith("data:image/webp")]
    assert set(outside) == {small.resolve().as_uri()}
    assert tab.run("document.querySelectorAll('svg.plot circle').length") == 3 + SMALL
    box = tab.run(
        "(r => [r.width, r.height])(document.querySelector('svg.plot').getBoundingClientRect())"
    )
    assert min(box) > 100
    pictures = "[...document.querySelectorAll('#gallery img')]"
    assert tab.run(f"Promise.all({pictures}.map(i => i.decode())).then(() => true)")
    assert tab.run(f"{pictures}.every(i => i.naturalWidth > 0 && i.alt)")
    assert tab.run(f"{pictures}[0].alt") == "people/0000.png: source"


def test_the_gallery_sorts_by_any_metric(tab: Chromium) -> None:
    assert shown(tab) == list(range(SMALL))
    # Images 0 to 6 have 20 + (0, 5, 3, 1, none, 4, 2) dB.
    choose(tab, column="refined")
    assert shown(tab) == [0, 3, 6, 2, 5, 1, 4]
    choose(tab, order="best first")
    assert shown(tab) == [1, 5, 2, 6, 3, 0, 4]
    choose(tab, score="MSE")
    assert tab.run("controls.elements.order.selectedOptions[0].text") == "worst first"
    assert shown(tab)[0] == 0
    assert "MSE: 0.050" in tab.run("document.querySelector('#gallery .sorted').textContent")
    choose(tab, column="order of the run")
    assert shown(tab) == list(range(SMALL))


def test_the_search_filters_by_id(tab: Chromium) -> None:
    tab.run("controls.elements.query.focus()")
    tab.press(*"0005")
    assert shown(tab) == [5]
    assert tab.run("controls.elements.count.value") == f"1 of {SMALL} images"
    tab.press("x")
    assert shown(tab) == []
    assert tab.run("document.querySelector('#gallery').getAttribute('aria-rowcount')") == "1"


def test_keys_move_enlarge_and_close(tab: Chromium) -> None:
    tab.run("controls.elements.query.focus()")
    for _ in range(4):
        tab.press("Tab")
        if tab.run("gallery.contains(document.activeElement)"):
            break
    # Fields that are disabled are skipped; the whole gallery is one stop.
    assert focused(tab) == ["2", "2"]
    style = "getComputedStyle(document.activeElement)"
    assert tab.run(f"{style}.outlineStyle !== 'none' && parseFloat({style}.outlineWidth) >= 2")
    tab.press("ArrowDown", "ArrowRight", "ArrowRight")
    assert focused(tab) == ["3", "4"]
    tab.press("Enter")
    assert tab.run("zoom.open && zoom.contains(document.activeElement)")
    assert tab.run("zoom.querySelector('img').alt") == "people/0001.png: refined"
    facts = tab.run("zoom.querySelector('.facts').textContent")
    assert "25.00" in facts
    assert "not counted: 12%" in facts
    tab.press("ArrowDown", "ArrowRight")
    assert tab.run("zoom.querySelector('figcaption').textContent") == (
        "people/0002.png: mask, not stored"
    )
    tab.press("Escape")
    assert not tab.run("zoom.open")
    assert focused(tab) == ["4", "5"]
    tab.press("End", modifiers=2)
    assert focused(tab) == [str(SMALL + 1), "5"]


def slide(tab: Chromium) -> dict[str, Any]:
    """The slider of the enlarged picture, and how much of the source is seen beside it."""
    return tab.run(
        "(s => ({off: s.disabled, text: s.ariaValueText ?? s.getAttribute('aria-valuetext'),"
        "label: s.labels[0].innerText.trim(), focused: s === document.activeElement,"
        "seen: getComputedStyle(zoom.querySelector('.source')).display !== 'none',"
        "part: zoom.querySelector('.pair').style.getPropertyValue('--reveal')}))"
        "(zoom.querySelector('input[type=range]'))"
    )


def test_a_slider_compares_with_the_source(tab: Chromium) -> None:
    tab.run("document.querySelectorAll('#gallery img')[2].click()")
    tab.settle()
    found = slide(tab)
    assert (found["label"], found["off"], found["seen"]) == ("Compare with source", False, False)
    tab.run("zoom.querySelector('[autofocus]').focus()")
    for _ in range(8):
        tab.press("Tab")
        if slide(tab)["focused"]:
            break
    # Its arrow keys move the slider, and no longer from picture to picture.
    tab.press("ArrowRight", "ArrowRight", "ArrowUp")
    found = slide(tab)
    assert (found["part"], found["seen"]) == ("15%", True)
    assert found["text"] == "15 % source, 85 % refined"
    assert tab.run("zoom.querySelector('figcaption').textContent") == "people/0000.png: refined"
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    (slider,) = [n for n in nodes if not n["ignored"] and n["role"]["value"] == "slider"]
    assert slider["name"]["value"] == "Compare with source"
    # Neither the source itself nor a picture that is not stored can be compared.
    tab.run("zoom.querySelector('[data-move=\"0,-1\"]').click()")
    tab.run("zoom.querySelector('[data-move=\"0,-1\"]').click()")
    assert slide(tab)["off"]
    tab.run("zoom.querySelector('[data-close]').click()")
    tab.run("document.querySelectorAll('#gallery [role=gridcell]')[11].click()")
    assert tab.run("zoom.querySelector('figcaption').textContent").endswith("mask, not stored")
    assert slide(tab)["off"]
    tab.press("Escape")


def test_texts_of_plots_do_not_overlap(chromium: Chromium, tmp_path: Path) -> None:
    notes = ["-2", "-1", "0", "+1", "+2"]
    near = Series("mean", [0, 0.01, 0.02, 0.4, 0.41], [0, 0.01, 0, 1, 1], notes)
    far = Series("", [1e5, 1.00002e5], [1e-6, 3e-6], ["inverted", "refined"])
    title = "Background PSNR to the refined picture [dB], out-of-domain"
    parts = {"w_plus / published": {"embed": 12.0, "refine": 140.5}, "b": {"embed": 3}}
    drawn = [
        plots.curves([near], title, title),
        plots.curves([far], "x", "y"),
        plots.distribution({"a": [0.00125, 0.00675], "b": [0.004]}, "MSE"),
        plots.distribution({"a": np.linspace(0.001, 0.0123456, 90)}, "MSE"),
        plots.steps([0, 3, 9], [0.015, 0.025], "time of work [min]", "images/s"),
        plots.bars({"decompression_bomb_of_an_image": 1234, "no_face": 7}, "Failures"),
        plots.stacked(parts, "seconds"),
    ]
    section = Section("all", "All", plots=[Plot("A plot", svg or "") for svg in drawn])
    page = Page("Plots", "", [section])
    path = tmp_path / "index.html"
    path.write_text("".join(report_page.render(page)), "utf-8")
    chromium.open(path)
    found = chromium.run(
        "[...document.querySelectorAll('svg.plot')].map(svg => [...svg.querySelectorAll('text')]"
        ".map(t => [t.textContent, t.getBBox()]).map(([n, b]) => [n, b.x, b.y, b.width, b.height]))"
    )
    assert len(found) == len(drawn)
    for texts in found:
        for (one, x, y, w, h), (other, x2, y2, w2, h2) in combinations(texts, 2):
            # Boxes have room for accents above and below the letters.
            apart = x + w <= x2 + 1 or x2 + w2 <= x + 1 or y + h <= y2 + 3 or y2 + h2 <= y + 3
            assert apart, (one, other)


def test_tables_sort_by_value(tab: Chromium) -> None:
    column = "[...document.querySelectorAll('#metrics tbody tr')].map(r => r.cells[0].textContent)"
    state = "document.querySelectorAll('#metrics th')[1].getAttribute('aria-sort')"
    assert tab.run(state) == "none"
    tab.run("document.querySelectorAll('#metrics th button')[1].focus()")
    tab.press("Enter")
    # By number: as text, 10 comes before 9. What is unknown stays last.
    assert (tab.run(column), tab.run(state)) == (["a", "b", "c", "d"], "ascending")
    tab.press("Enter")
    assert (tab.run(column), tab.run(state)) == (["c", "b", "a", "d"], "descending")


def test_landmarks_and_names(tab: Chromium) -> None:
    """What a screen reader finds, from the tree that Chromium makes for it."""
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    roles = [role for role, _ in found]
    assert {"banner", "main", "navigation", "contentinfo", "search", "grid"} <= set(roles)
    assert ("searchbox", "Search by id") in found
    assert ("region", "Images") in found
    nameless = {role for role, name in found if not name.strip()}
    assert not nameless & {"image", "button", "combobox", "searchbox", "grid", "columnheader"}
    assert roles.count("gridcell") == SMALL * len(COLUMNS)
    (plot,) = [name for role, name in found if name.startswith("Distribution of")]
    assert "refined: 7 values from 20.00 to 26.00" in plot


def test_3000_images_keep_the_page_small(chromium: Chromium, large: Path) -> None:
    """The size of the file is bounded, and so is what exists of it at a time."""
    text = large.read_text("utf-8")
    print(f"3,000 images: {len(text) / 1e6:.1f} MB")
    assert len(text) < report_gallery.PAGE_BYTES + 3e6
    chromium.open(large)
    chromium.settle()
    rows, pictures = "#gallery .rows > *", "#gallery img"
    most = int(chromium.run("Math.ceil(gallery.clientHeight / 100) + 5"))

    def count(selector: str) -> int:
        return chromium.run(f"document.querySelectorAll({json.dumps(selector)}).length")

    for place in (0, 0.5, 1):
        chromium.run(f"gallery.scrollTop = {place} * gallery.scrollHeight")
        chromium.settle()
        there = shown(chromium)
        assert len(there) == count(rows) <= most
        assert count(pictures) <= most * len(COLUMNS)
        assert place * (LARGE - most) - 1 <= there[0]
    assert there[-1] == LARGE - 1
    choose(chromium, column="refined")
    assert len(shown(chromium)) <= most
    # The first of those with 20 dB: every seventh.
    assert shown(chromium)[:3] == [0, 7, 14]
    chromium.run("gallery.querySelector('[tabindex=\"0\"]').focus()")
    chromium.press("End", modifiers=2)
    assert focused(chromium) == [str(LARGE + 1), str(len(COLUMNS) + 1)]
    assert count(rows) <= most
    assert chromium.errors == []


def test_a_hostile_id_is_only_text(chromium: Chromium, tmp_path: Path) -> None:
    name = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"
    gallery = Gallery(
        name, (name,), [GalleryItem(name, name, name)], [Score(name, name, [1.0], "", name)]
    )
    page = Page(
        name, name, [Section("images", name, [name], gallery=gallery, code=(name, name))], name
    )
    picture = base64.b64encode(b"no picture").decode()
    path = tmp_path / "index.html"
    path.write_text("".join(report_page.render(page, [[picture]])), "utf-8")
    chromium.open(path)
    chromium.settle()
    assert chromium.run("window.hurt") is None
    assert chromium.run("document.querySelector('#gallery .rows b').textContent") == name
    assert chromium.run("document.querySelector('h1').textContent") == name
