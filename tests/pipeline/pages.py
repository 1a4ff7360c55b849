"""Pages of a report with a gallery, for Chromium."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dhr_batch.pipeline.report import gallery as report_gallery
from dhr_batch.pipeline.report import page as report_page
from dhr_batch.pipeline.report import plots
from dhr_batch.pipeline.report.page import (
    Column,
    Gallery,
    GalleryItem,
    Page,
    Plot,
    Score,
    Section,
    Table,
)

COLUMNS = ("source", "inverted", "refined", "mask")
SMALL = 7


def page_of(count: int) -> Page:
    """`count` images whose order by PSNR is not the order of their names; one has no PSNR."""
    items = [GalleryItem(f"people/{n:04}.png") for n in range(count)]
    items[1] = GalleryItem(items[1].name, "a note", "not counted: 12% of the face is in-domain")
    psnr = [20.0 + n * 5 % 7 for n in range(count)]
    known = [None if n == 4 else value for n, value in enumerate(psnr)]
    scores = [
        Score("refined", "PSNR [dB]", known, "higher", "{} dB"),
        Score("refined", "MSE", [1 / v for v in psnr], "lower"),
        Score("inverted", "SSIM", [0.5] * count, "higher"),
    ]
    rows = [["b", 10.0], ["a", 9.0], ["c", float("inf")], ["d", None]]
    svg = plots.distribution({"inverted": [1, 2, 3], "refined": psnr}, "PSNR") or ""
    table = Table("Numbers", [Column("name"), Column("value", number=True)], rows)
    metrics = Section("metrics", "Metrics", plots=[Plot("PSNR", svg)], tables=[table])
    gallery = Gallery("", COLUMNS, items, scores)
    return Page("A report", "", [metrics, Section("images", "Images", gallery=gallery)])


def save(page: Page, path: Path, most: int) -> Path:
    """The page with noise for pictures, each of which takes about `most` bytes."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    picture = report_gallery.webp(Image.fromarray(noise), 64, most)
    (gallery,) = [section.gallery for section in page.sections if section.gallery]
    full = [picture] * len(gallery.columns)
    rows = ([*full[:3], None, *full[4:]] if n == 2 else full for n in range(len(gallery.items)))
    with path.open("w", encoding="utf-8") as file:
        file.writelines(report_page.render(page, rows))
    return path
