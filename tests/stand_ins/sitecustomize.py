"""Python runs this before a program of its process, if its folder is in PYTHONPATH.

`tests.filled.environment` sets the variables that it reads, so that commands and their workers find
filled checkpoints in place of published ones, and GPUs that are not there.
"""

import os
from pathlib import Path

from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.planning import devices

_described = catalogue._folders
catalogue._folders = lambda: (Path(os.environ["DHR_BATCH_FILLED"]), _described()[1])
if gpus := int(os.environ.get("DHR_BATCH_LOGICAL_GPUS", "0")):
    devices.physical_gpus = lambda: gpus
    devices.torch_device = lambda config: "cpu"
