"""The commands below `config`: the settings of runs and what they mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.pipeline.cli import complete
from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.cli.output import add_row, print_json, say, show, table_of

if TYPE_CHECKING:
    from dhr_batch.pipeline.planning.describe import Setting


@click.group()
def config() -> None:
    """Show and explain settings."""


@config.command("show")
@cli_options.selected_options(
    "dataset", "first_stage", "preset", "gpus", "device", "workers_per_gpu", "files", "sets",
    "limit", "seed", "allow_code",
)  # fmt: skip
def show_config(**options: Any) -> None:
    """Print the settings of `run` with the same options, as YAML.

    Settings that a run chooses itself, such as the number of workers, are `null` or `auto`.

    \b
    Examples:
      dhr-batch config show --preset tiny
      dhr-batch config show --dataset ~/photos --set embed.steps=100 > mine.yaml
      dhr-batch run -c mine.yaml
    """
    from dhr_batch.pipeline.planning import config as configs
    from dhr_batch.pipeline.planning.prepare import configured, given_layers

    request = cli_options.request(options)
    layers = given_layers(request)
    given = configs.merge(layers)
    if given.get("dataset"):
        text = configured(request)[0].to_yaml()
    else:
        preset = configs.chosen_preset(given)
        text = configs.build([{"dataset": ""}, *preset, *layers]).to_yaml().partition("\n")[2]
    click.echo(text, nl=False)


@config.command()
@click.argument("key", metavar="[KEY]", default="", shell_complete=complete.keys)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def explain(key: str, as_json: bool) -> None:
    """Explain a setting, a section such as `refine`, or all settings.

    \b
    Examples:
      dhr-batch config explain edit.follow
      dhr-batch config explain refine
    """
    from dhr_batch.pipeline.planning import describe

    found = describe.find(key) if key else describe.settings()
    if as_json:
        return print_json(found)
    if {setting.key for setting in found} == {key}:
        for line in _one(found):
            say(line)
        return None
    table = table_of("setting", "method", "default", "description")
    for setting in found:
        add_row(table, setting.key, setting.method, _default(setting), setting.description)
    return show(table)


def _one(found: Sequence[Setting]) -> Iterator[str]:
    """Yield lines about the settings of one key. What several methods share is said once."""
    from dhr_batch.pipeline.planning import describe

    alike: list[tuple[Setting, list[str]]] = []
    for setting in found:
        about = setting.model_copy(update={"method": ""})
        methods = next((methods for other, methods in alike if other == about), None)
        if methods is None:
            alike.append((about, methods := []))
        methods += [setting.method] if setting.method else []
    for setting, methods in alike:
        yield setting.key + (f" (of {', '.join(methods)})" if methods else "")
        yield f"  {setting.description}"
        yield f"  values: {setting.type}"
        yield f"  default: {_default(setting)}"
        for name, value in setting.presets.items():
            yield f"  with --preset {name}: {describe.text(value)}"


def _default(setting: Setting) -> str:
    from dhr_batch.pipeline.planning import describe

    return "none, it must be given" if setting.required else describe.text(setting.default)


@config.command()
def schema() -> None:
    """Print a JSON schema of files with settings, for editors.

    \b
    Example:
      dhr-batch config schema > dhr-batch.schema.json

    The first line of a file with settings names it for editors with the YAML language server:

    \b
      # yaml-language-server: $schema=dhr-batch.schema.json
    """
    from dhr_batch.pipeline.planning import describe

    click.echo(json.dumps(describe.schema(), indent=2, ensure_ascii=False))
