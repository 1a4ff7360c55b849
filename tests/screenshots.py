"""Take the pictures of a report or of a benchmark's page that the documentation shows.

python -m dhr_batch.tests.screenshots RUN/report/index.html docs/report
python -m dhr_batch.tests.screenshots BENCHMARK/index.html docs/benchmark

Each call writes the first screen of the page at the width of a phone and of a desktop, in light and
in dark: OUT-phone-light.webp and so on. It needs Chromium. Only pages of the dataset `portraits`
may be part of the project.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from dhr_batch.tests.pipeline.chromium import Chromium

SCREENS = {"phone": (390, 844), "desktop": (1280, 960)}
SCHEMES = ("light", "dark")


def take(page: Path, out: str) -> None:
    """Write the four pictures of a page."""
    with Chromium() as browser, TemporaryDirectory() as folder:
        for screen, (width, height) in SCREENS.items():
            size = {"width": width, "height": height, "deviceScaleFactor": 1}
            browser.call("Emulation.setDeviceMetricsOverride", mobile=screen == "phone", **size)
            for scheme in SCHEMES:
                wanted = [{"name": "prefers-color-scheme", "value": scheme}]
                browser.call("Emulation.setEmulatedMedia", features=wanted)
                browser.open(page)
                pictures = "Promise.all([...document.images].map(i => i.decode()))"
                browser.run(f"{pictures}.then(() => true, () => false)")
                browser.settle()
                shot = Path(folder) / "shot.png"
                browser.screenshot(shot)
                Image.open(shot).convert("RGB").save(f"{out}-{screen}-{scheme}.webp", quality=80)


if __name__ == "__main__":
    take(Path(sys.argv[1]), sys.argv[2])
