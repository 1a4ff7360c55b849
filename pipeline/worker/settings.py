"""The settings of a worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.stages.device import Kind


@dataclass(frozen=True)
class Settings:
    """The settings of a worker.

    Attributes:
        config: The resolved settings of the run.
        aligned: Whether the images are aligned already.
        split: The split of the dataset, which the tables record.
        device: The device of torch.
        out: The folder or URL of the run.
        code: The fingerprint of the code in the plan, which the code of the worker must have; "" to
            accept any code.
        metadata: Facts about the run that the files of tables record.
        truths: The ground truth of each image, for a run that begins from another one.
        divided: Whether stages of the host and of the device work on different batches at the same
            time.
        cpus: The number of cores that the worker reserves.
    """

    config: Config
    aligned: bool
    split: str
    device: Kind
    out: str
    code: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    truths: dict[str, Item] = field(default_factory=dict)
    divided: bool = False
    cpus: int = 1
