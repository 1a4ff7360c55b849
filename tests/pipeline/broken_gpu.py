"""A stage that ends its process on one GPU, as Ray numbers them; its workers find it by name."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from dhr_batch.stages.context import Context
from dhr_batch.stages.record import Record
from dhr_batch.tests.faults import stages


class Options(stages.FaultOptions):
    """broken: GPUs on which it ends. at_start: when the networks are loaded, not at an image.

    folder: where it notes each end. Other GPUs wait until `patience` of them are noted.
    """

    broken: tuple[str, ...] = ()
    at_start: bool = False
    patience: int = 0


class Embed(stages.Faulty):
    Options = Options

    def setup(self, context: Context) -> None:
        if self.options.at_start:
            self._end_if_broken()

    def process(self, records: Sequence[Record]) -> list[Record]:
        self._end_if_broken()
        deadline = time.monotonic() + 100
        while self._ends() < self.options.patience and time.monotonic() < deadline:
            time.sleep(0.05)
        return super().process(records)

    def _ends(self) -> int:
        return len(os.listdir(self.options.folder))

    def _end_if_broken(self) -> None:
        if os.environ["CUDA_VISIBLE_DEVICES"] in self.options.broken:
            Path(self.options.folder, str(os.getpid())).touch()
            os._exit(1)
