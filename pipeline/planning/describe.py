"""All settings with their types, defaults and descriptions: for people, and as a JSON schema.

The descriptions are those of the fields of `config.Config` and `stages.options`. torch is not
imported.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.strict import Strict
from dhr_batch.stages import registry
from dhr_batch.stages.options import edit as edits

_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_KINDS = {
    "integer": "whole number",
    "boolean": "true or false",
    "string": "text",
    "object": "settings",
}


class Setting(Strict):
    """One setting.

    Attributes:
        key: Its name, as in `--set KEY=VALUE`.
        method: The member of the family of stages that has it, or the kind of edit; "" for settings
            of the run.
        type: The values that it takes, in words.
        choices: Names among these values.
        default: What holds if nothing is set: that of the preset `default` for the methods it
            chooses, otherwise that of the method. None also stands for a setting that is required
            (`required`).
        required: Whether there is no default.
        description: What it does.
        presets: The values that other presets give it, by their names.
    """

    key: str
    method: str
    type: str
    choices: tuple[str, ...] = ()
    default: Any = None
    required: bool = False
    description: str
    presets: Mapping[str, Any] = {}


@cache
def settings() -> tuple[Setting, ...]:
    """Return all settings: those of the run, then of each method of each stage, then of edits."""
    return (*_of_the_run(), *(s for family in registry.STAGES for s in _of_family(family)))


def find(text: str) -> tuple[Setting, ...]:
    """Return the settings of a key, or of a section such as `refine` or `segment.thresholds`.

    A key that several methods have yields one setting for each.

    Raises:
        Refused: If there is none. The message names similar ones.
    """
    key = text.strip().rstrip(".")
    found = tuple(s for s in settings() if s.key == key)
    found = found or tuple(s for s in settings() if s.key.startswith(f"{key}."))
    if found:
        return found
    known = keys()
    ends = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = ends or difflib.get_close_matches(key, known, 3)
    if near:
        raise Refused(f"unknown setting {key!r}", way_out=f"did you mean {', '.join(near)}?")
    raise Refused(f"unknown setting {key!r}", way_out="see all with: dhr-batch config explain")


def keys() -> list[str]:
    """Return the keys of all settings and sections."""
    names = dict.fromkeys(s.key for s in settings())
    sections = {name.rpartition(".")[0] for name in names if "." in name}
    return sorted({*names, *sections})


def _of_the_run() -> Iterator[Setting]:
    base = configs.preset("default")
    schema = configs.Config.model_json_schema()
    for key, field in schema["properties"].items():
        if key not in registry.STAGES:
            own = {name: given[key] for name, given in _presets().items() if key in given}
            yield _setting(key, "", schema, field, base, own, key in schema["required"])


def _of_family(family: str) -> Iterator[Setting]:
    base = configs.merge([configs.preset("default")])[family]
    merged = {
        name: configs.merge([configs.preset("default"), given])[family]
        for name, given in _presets().items()
    }
    yield Setting(
        key=f"{family}.name",
        method="",
        type=f"one of: {', '.join(registry.names(family))}; or package.module:Class",
        choices=tuple(registry.names(family)),
        default=base["name"],
        description=f"method of the stage `{family}`, which decides what its other settings are",
        presets={n: s["name"] for n, s in merged.items() if s["name"] != base["name"]},
    )
    for method in registry.names(family):
        options = registry.options(family, method)
        given = base if method == base["name"] else {}
        others = {n: s for n, s in merged.items() if s["name"] == method}
        yield from _of_model(options, family, method, given, others)
    if family == "edit":
        for kind in edits.KINDS:
            yield from _of_model(edits.KINDS[kind], "edit.edits", kind, {}, {})


def _of_model(
    model: type[BaseModel],
    prefix: str,
    method: str,
    given: Mapping[str, Any],
    others: Mapping[str, Mapping[str, Any]],
) -> Iterator[Setting]:
    """Yield the settings of a model.

    Args:
        model: The model.
        prefix: The section that it describes.
        method: The method or kind.
        given: What the preset `default` sets.
        others: What other presets set, by their names.
    """
    schema = model.model_json_schema()
    # A model that contains itself is described by reference.
    own_schema = _referred(schema, schema)
    for name, field in own_schema["properties"].items():
        if name == "name":
            continue
        key, annotation = f"{prefix}.{name}", model.model_fields[name].annotation
        own = {preset: s[name] for preset, s in others.items() if name in s}
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _of_model(annotation, key, method, given.get(name, {}), own)
        else:
            required = name in own_schema.get("required", ())
            yield _setting(key, method, schema, field, given, own, required)


def _setting(
    key: str,
    method: str,
    schema: Mapping[str, Any],
    field: Mapping[str, Any],
    given: Mapping[str, Any],
    others: Mapping[str, Any],
    required: bool,
) -> Setting:
    name = key.rpartition(".")[2]
    default = given.get(name, field.get("default"))
    accepted = _as_accepted(name, dict(field))
    return Setting(
        key=key,
        method=method,
        type=_words(accepted, schema),
        choices=tuple(_choices(accepted)),
        default=default,
        required=required,
        description=field.get("description", ""),
        presets={preset: value for preset, value in others.items() if value != default},
    )


def _referred(field: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return schema["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else field


def _choices(field: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names that a field of a JSON schema takes."""
    if field.get("type") == "boolean":
        yield from ("true", "false")
    yield from filter(None, field.get("enum", ()))
    for option in field.get("anyOf", ()):
        yield from _choices(option)


def _presets() -> dict[str, dict[str, Any]]:
    return {name: configs.preset(name) for name in configs.presets() if name != "default"}


def _words(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return which values a field of a JSON schema takes."""
    field = _referred(field, schema)
    if options := field.get("anyOf") or field.get("oneOf"):
        words = list(dict.fromkeys(_words(option, schema) for option in options))
        if words[0] == f"list of {words[-1]}":
            return f"{words[-1]}; or a list"
        return " or ".join(words)
    if "enum" in field:
        return f"one of: {', '.join(str(value) or repr('') for value in field['enum'])}"
    if "const" in field:
        return str(field["const"])
    if pattern := field.get("pattern"):
        return "package.module:Class" if pattern == ":" else "a .safetensors file"
    if field.get("type") == "array":
        if items := field.get("prefixItems"):
            return f"list of {len(items)} numbers"
        items = _words(field.get("items", {}), schema)
        return f"list of {items}{'s' * (items in ('number', 'text'))}"
    kind = str(field.get("type", ""))
    limits = [f"{word} {field[key]:g}" for key, word in _LIMITS.items() if key in field]
    return ", ".join([_KINDS.get(kind, kind), *limits])


def schema() -> dict[str, Any]:
    """Return a JSON schema of files with settings (`-c`) and of presets, for editors.

    Nothing is required in them, as defaults and other files complete them. A section may be the
    name of a method alone.
    """
    whole = configs.Config.model_json_schema()
    whole["description"] = "Settings of a run; `dhr-batch config explain KEY` explains each."
    del whole["required"]
    definitions = whole.setdefault("$defs", {})
    for family in registry.STAGES:
        names = registry.names(family)
        choices: list[dict[str, Any]] = [{"enum": names}]
        for name in names:
            options = registry.options(family, name)
            own = options.model_json_schema(ref_template="#/$defs/{model}")
            definitions.update(own.pop("$defs", {}))
            own["properties"]["name"] = {"const": name}
            own.pop("required", None)
            definitions[options.__name__] = own
            choices.append({"$ref": f"#/$defs/{options.__name__}"})
        outside = {"type": "string", "pattern": ":"}
        choices.append({"type": "object", "properties": {"name": outside}, "required": ["name"]})
        whole["properties"][family] = {
            "anyOf": choices,
            "description": f"the stage `{family}`: a method, or its `name` and settings",
        }
    for part in (whole, *definitions.values()):
        for name, field in part.get("properties", {}).items():
            part["properties"][name] = _as_accepted(name, field)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **whole,
        "title": "Settings of dhr-batch",
    }


def _as_accepted(name: str, field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field with what its class accepts besides: see the comments."""
    described: dict[str, Any] = {
        key: field[key] for key in ("description", "default") if key in field
    }
    bare = {key: value for key, value in field.items() if key not in described}
    if field.get("type") == "string" and name in registry.TABLE and "enum" not in field:
        # Networks, which may come from other packages.
        return {"anyOf": _networks(name), **described}
    if field.get("type") == "array" and field.get("items") == {"type": "string"}:
        # A list of one may be written without brackets, and an empty one as `none`.
        if name not in registry.TABLE:
            return {"anyOf": [bare, {"type": "string"}], **described}
        one = {"anyOf": _networks(name, "none")}
        return {"anyOf": [bare | {"items": one}, one], **described}
    return field


def _networks(family: str, *more: str) -> list[dict[str, Any]]:
    names: list[dict[str, Any]] = [{"enum": [*registry.names(family), *more]}]
    if family == "generator":
        names = [{"enum": ["auto", *registry.names(family)]}]
        names.append({"type": "string", "pattern": r"\.safetensors$"})
    return [*names, {"type": "string", "pattern": ":"}]


def text(value: Any) -> str:
    """Return a value as one line of YAML."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
