"""Writes the results of a benchmark beside its runs."""

from __future__ import annotations

import io
from collections.abc import Mapping

from dhr_batch.pipeline.bench import as_json, latex
from dhr_batch.pipeline.bench import page as bench_page
from dhr_batch.pipeline.bench import text as bench_text
from dhr_batch.pipeline.bench.board import board
from dhr_batch.pipeline.bench.data import load
from dhr_batch.pipeline.bench.run import Benchmark
from dhr_batch.pipeline.report import page as report_page
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import BENCHMARK, Owned


def write_benchmark(benchmark: Benchmark, failed: Mapping[str, str]) -> str:
    """Write index.html and the files of `page.FILES`, and return the path of the page.

    Args:
        benchmark: The benchmark.
        failed: The reason why each failed run has no complete tables.

    Raises:
        CommandError: If a table cannot be read.
        Refused: After all other files are written, if a file with one of these names was not
            written by a benchmark.
    """
    matrix = benchmark.matrix
    loaded = load(benchmark, failed)
    boards = [board(found, matrix.compare_to, matrix.columns) for found in loaded]
    target = Owned(connect(benchmark.out), BENCHMARK)
    target.claim()
    texts = {
        "benchmark.md": bench_text.markdown(benchmark, boards, failed),
        "benchmark.tex": latex.latex(boards),
        "benchmark.csv": bench_text.csv_table(boards),
        "images.csv": bench_text.csv_images(boards),
        "benchmark.json": as_json.to_json(benchmark, boards, failed),
    }
    for name, text in texts.items():
        target.write(name, text.encode())
    page = bench_page.page(benchmark, boards, failed)
    buffer = io.BytesIO()
    for text in report_page.render(page, bench_page.pictures(boards)):
        buffer.write(text.encode())
    target.write("index.html", buffer.getvalue())
    target.require()
    return target.storage.locate("index.html")
