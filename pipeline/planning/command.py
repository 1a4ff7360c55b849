"""Rebuild the command that continues a run from its plan."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from typing import Any

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.planning import origin
from dhr_batch.pipeline.planning.layers import flat
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.stages import yaml_files
from dhr_batch.stages.registry import STAGES

_START = ("dataset", "preset", "first_stage")
_ALWAYS = ("dataset", "preset", "gpus")
_FLAGS = (*_ALWAYS, "device", "limit", "seed")


def goes_on(plan: StoredPlan, place: str) -> str:
    """Return the command line that continues a run.

    It has a flag or `--set` for each setting that differs from its default.

    Args:
        plan: The stored plan.
        place: The folder or URL of the run.

    Raises:
        Refused: If a preset or stage of the plan does not exist any more.
    """
    settings = plan.settings.values
    given = {key: settings[key] for key in _START if settings.get(key) is not None}
    try:
        layers = origin.start(given)[2]
    except Refused:
        # The dataset has been moved, so its own settings are unknown. Give them one by one.
        layers = configs.chosen_preset(given)
    base = configs.build([*layers, given])
    # If another member of a family was chosen, its options are compared with its own defaults.
    names = {family: {"name": plan.settings.member(family)} for family in STAGES}
    plain = configs.resolve(
        configs.build([*layers, given, names]), plan.settings.gpus, plan.images
    ).model_dump()
    defaults = flat(plain | {f: plain[f] | {"name": getattr(base, f)["name"]} for f in STAGES})
    words = ["dhr-batch", "run"]
    for flag in _FLAGS:
        value = settings.get(flag)
        if value is not None and (flag in _ALWAYS or value != defaults[flag]):
            words += [f"--{flag}", str(value)]
    if plan.settings.begins_late:
        words += ["--from", plan.settings.first_stage]
    for key, value in flat(settings).items():
        if key not in _FLAGS and (key not in defaults or defaults[key] != value):
            words += ["--set", f"{key}={_text(value)}"]
    return shlex.join([*words, "--out", place])


def _text(value: Any) -> str:
    with suppress(yaml_files.InvalidYaml):
        if isinstance(value, str) and yaml_files.parse(value) == value:
            return value
    return json.dumps(value, ensure_ascii=False)
