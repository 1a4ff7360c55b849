"""The files of a benchmark: its page, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

from dhr_batch.pipeline.bench import page as bench_page
from dhr_batch.pipeline.bench import text as bench_text
from dhr_batch.pipeline.units import number
from dhr_batch.tests.pipeline.chromium import Chromium
from dhr_batch.tests.pipeline.typeset import needs_latex, typeset


def test_the_page_opens_with_the_ranking_and_a_plot(finished, figures):
    first, second, *_ = bench_page.page(finished[0], [figures], {}).sections
    assert (first.key, second.key) == ("ranking", "images")
    (table,), (plot,) = first.lead, first.plots
    assert [column.title for column in table.columns[:2]] == ["method", "mean rank"]
    assert {row[0] for row in table.rows} == set(figures.cells)
    assert [row[1] for row in table.rows] == sorted(row[1] for row in table.rows)
    assert plot.title == "PSNR against seconds"


def test_a_page_of_two_datasets_says_whose_images_it_shows(finished, figures):
    for boards, said in (([figures], 0), ([figures, figures], 1)):
        sections = bench_page.page(finished[0], boards, {}).sections
        (images,) = [s for s in sections if s.key == "images"]
        found = sum("Images of photos; the images of the other" in text for text in images.text)
        assert found == said


def test_a_column_of_fewer_images_says_so(figures):
    counted = len(figures.compared.counted)
    key = next(key for key in figures.cells["w+ / dhr"] if key.endswith("@effect"))
    column = next(c for c in figures.columns if c.key == key)
    for n, expected in ((counted, column.title), (2, f"{column.title} (n = 2)")):
        cells = {
            name: own | {key: replace(own[key], n=n)} if key in own else own
            for name, own in figures.cells.items()
        }
        assert bench_text.head(replace(figures, cells=cells), column, column.sheet) == expected


def test_markdown_marks_the_best(finished, figures):
    text = (finished[2].parent / "benchmark.md").read_text("utf-8")
    assert "Means over the 4 of 6 images that all 4 methods have." in text
    assert "3.png (refine: dark in w+ / fails)" in text
    table = text.partition("### Reconstruction")[2].partition("###")[0]
    rows = {
        r[0]: r[1:]
        for r in (
            re.split(r" *\| *", line)[1:-1] for line in table.splitlines() if line.startswith("|")
        )
    }
    column = rows["method"].index("PSNR [dB]")
    values = {m: own["psnr"].value for m, own in figures.cells.items()}
    best = max(values, key=values.__getitem__)
    assert rows[best][column].startswith(f"**{number(values[best])}** [")
    for heading in (
        "Edit darkness at equal effect",
        "Cost",
        "Paired differences",
        "Published figures",
    ):
        assert f"# {heading}" in text
    assert text.index("Published figures") > text.index("### Runs")


def test_latex_is_balanced_and_escaped(finished):
    text = (finished[2].parent / "benchmark.tex").read_text("utf-8")
    for word in ("table", "tabular"):
        assert text.count(f"\\begin{{{word}}}") == text.count(f"\\end{{{word}}}") > 4
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.count("{") - body.count("\\{") == body.count("}") - body.count("\\}")
    assert not re.search(r"(?<!\\)[_#%]", body)
    assert "\\textbf{" in body
    assert "\\underline{" in body
    for tabular in re.findall(r"\\begin\{tabular\}\{(l[rl]*)\}(.*?)\\end\{tabular\}", body, re.S):
        rows = [line for line in tabular[1].splitlines() if line.endswith("\\\\")]
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(tabular[0])}


@needs_latex
def test_latex_is_typeset(finished, tmp_path):
    log = typeset(finished[2].parent / "benchmark.tex", tmp_path)
    assert "Missing character" not in log


def test_csv_and_json_have_every_figure_and_its_origin(finished, figures):
    folder = finished[2].parent
    rows = list(csv.DictReader((folder / "benchmark.csv").open()))
    assert len(rows) == sum(len(own) for own in figures.cells.values())
    found = {(r["refiner"], r["column"]): r for r in rows}
    run = figures.compared.methods[1].runs[0]
    assert found["dhr", "psnr"]["run"] == "photos-w+-dhr"
    assert found["dhr", "psnr"]["fingerprint"] == run.fingerprint
    assert float(found["dhr", "psnr"]["value"]) == figures.cells["w+ / dhr"]["psnr"].value
    images = list(csv.DictReader((folder / "images.csv").open()))
    own = [r for r in images if (r["method"], r["column"]) == ("w+ / dhr", "psnr")]
    assert [r["image_id"] for r in own] == figures.compared.counted
    content = json.loads((folder / "benchmark.json").read_text())
    (dataset,) = content["datasets"]
    assert dataset["images"] == figures.compared.counted
    method = dataset["methods"][1]
    assert method["figures"]["psnr"]["n"] == 4
    assert method["runs"][0]["settings"]["refine"]["steps"] == 2
    assert method["runs"][0]["begins_from"] == "photos-w+-none"
    assert dataset["made_by"]["psnr"] == ["generator=tiny (random weights)"]


def test_the_page_is_one_file_with_the_pictures_of_all_methods(finished):
    text = finished[2].read_text("utf-8")
    assert not re.search(r"<(?:img|script|link|iframe)[^>]* (?:src|href)=", text)
    assert text.count('type="application/json" id="p') == 4
    assert 'class="n best"' in text
    gallery = json.loads(re.search(r'id="gallery-data">(.*?)</script>', text)[1])
    assert gallery["columns"][:2] == ["source", "w+ / none"]
    assert len(gallery["columns"]) == 1 + 4 + 4


def test_chromium_shows_and_sorts_the_tables(finished):
    with Chromium() as browser:
        browser.open(Path(finished[2]))
        browser.settle()
        tables = "[...document.querySelectorAll('table')]"
        table = f"{tables}.find(t => t.closest('#figures')?.textContent.includes('PSNR'))"
        names = f"[...{table}.tBodies[0].rows].map(r => r.cells[0].textContent)"
        before = browser.run(names)
        values = browser.run(
            f"[...{table}.tBodies[0].rows].map(r => Number(r.cells[1].dataset.value))"
        )
        browser.run(f"{table}.tHead.rows[0].cells[1].querySelector('button').click()")
        order = sorted(range(len(values)), key=values.__getitem__)
        assert browser.run(names) in ([before[i] for i in order], [before[i] for i in order[::-1]])
        best = browser.run(f"[...{table}.querySelectorAll('td.best')].map(c => c.textContent)")
        assert len(best) >= 3
        assert browser.run("document.querySelectorAll('.banner')[0].textContent").startswith(
            "random weights"
        )
        assert browser.run("document.querySelectorAll('#gallery .rows > *').length") == 4
        assert browser.errors == []
