"""The command that goes on with a run, from its plan."""

from __future__ import annotations

import json
import shlex
from typing import Any

import yaml

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.planning import origin
from dhr_batch.pipeline.planning.config import flat
from dhr_batch.pipeline.runs.stored_plan import StoredPlan
from dhr_batch.stages.registry import STAGES

_START = ("dataset", "preset", "first_stage")
_ALWAYS = ("dataset", "preset", "gpus")
_FLAGS = (*_ALWAYS, "limit", "seed")


def goes_on(plan: StoredPlan, place: str) -> str:
    """The command line of a stored plan: a flag or `--set` for each setting that is no default.

    Raises Refused for a preset or a stage that is not there any more.
    """
    settings = plan.settings.values
    given = {key: settings[key] for key in _START if settings.get(key) is not None}
    try:
        layers = origin.start(given)[2]
    except Refused:
        # It lies elsewhere now; its settings are then given one by one.
        layers = [configs.preset(given["preset"])] if "preset" in given else []
    base = configs.build([*layers, given])
    # An option of another member of a family is compared with the defaults of that member.
    names = {family: {"name": plan.settings.member(family)} for family in STAGES}
    plain = configs.resolve(
        configs.build([*layers, given, names]), plan.settings.gpus, plan.images
    ).model_dump()
    defaults = flat(plain | {f: plain[f] | {"name": getattr(base, f)["name"]} for f in STAGES})
    words = ["dhr-batch", "run"]
    for flag in _FLAGS:
        value = settings[flag]
        if value is not None and (flag in _ALWAYS or value != defaults[flag]):
            words += [f"--{flag}", str(value)]
    if plan.settings.begins_late:
        words += ["--from", plan.settings.first_stage]
    for key, value in flat(settings).items():
        if key not in _FLAGS and (key not in defaults or defaults[key] != value):
            words += ["--set", f"{key}={_text(value)}"]
    return shlex.join([*words, "--out", place])


def _text(value: Any) -> str:
    if isinstance(value, str) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
