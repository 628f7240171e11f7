"""What the verbs of the command line share: their common options, and how lists are printed for programs."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from autocompress.errors import UnfinishedRunError, UsageError

INTERRUPTED = 130


class TableFormat(StrEnum):
    """How a table is printed."""

    table = "table"
    json = "json"
    csv = "csv"


class Kind(StrEnum):
    """What can be listed."""

    tasks = "tasks"
    methods = "methods"
    objectives = "objectives"
    modes = "modes"
    spaces = "spaces"


Format = Annotated[TableFormat, typer.Option("--format", "-f", help="How to print it.")]
Run = Annotated[str, typer.Argument(help="A run folder, or its name under reports/.", metavar="RUN")]
Runs = Annotated[Path, typer.Option(help="The folder that holds runs.", metavar="FOLDER")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="A Python file that registers a task of your own; repeatable."),
]


def load_plugins(plugins: list[Path] | None) -> None:
    """Run the plugin files that were named."""
    if plugins:
        from autocompress.core.plugins import load_plugin

        for path in plugins:
            load_plugin(path)


def kept(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    return {key: value for key, value in given.items() if value is not None}


def print_dry_run(spec: str, overrides: list[str], given: dict[str, Any]) -> None:
    """Check a spec and print what would be searched."""
    from autocompress.engine.runner import make_plan
    from autocompress.engine.spec import load_spec

    budget = {"name": given.pop("name"), **{f"search.{key}": value for key, value in given.items()}}
    extra = [f"{key}={value}" for key, value in budget.items() if value is not None]
    plan = make_plan(load_spec(spec, [*overrides, *extra]))
    found = plan.source.spec
    print(
        f"{plan.source.name} is sound: task {plan.task.name}, mode {found.search.mode}, sampler {found.search.sampler}"
    )
    for name, domain in plan.space.dimensions():
        print(f"  {name}: {domain}")
    if found.search.mode == "amortized":
        print(f"  {len(plan.space.cuts())} candidates are cut from each training")
    minutes = "" if found.search.minutes is None else f", {found.search.minutes:g} minutes"
    print(f"budget: {found.search.trials} trials{minutes}; objectives: {', '.join(found.objectives)}")


def bounds(pairs: list[str] | None) -> dict[str, float]:
    """Return ``NAME=NUMBER`` pairs as a dictionary.

    Raises:
        UsageError: One is no such pair.

    Example:
        >>> bounds(["bytes=2e4"])
        {'bytes': 20000.0}
    """
    found = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        try:
            found[name.strip()] = float(text)
        except ValueError:
            equals = ""
        if not equals:
            raise UsageError(f"'{pair}' is no limit; write NAME=NUMBER, for example effective_flops=2e6")
    return found


def print_rows(rows: Sequence[Mapping[str, Any]], form: TableFormat) -> None:
    """Print rows as JSON or as CSV with the first row's keys as columns."""
    if form is TableFormat.json:
        print(json.dumps(rows, indent=1))
        return
    writer = csv.DictWriter(sys.stdout, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def offer(found: UnfinishedRunError) -> None:
    """Ask whether to continue a run that was not ended; where nobody can answer, say how."""
    from autocompress.cli.signals import somebody_is_there

    if not somebody_is_there():
        raise found
    what = str(found).partition(";")[0]
    if not typer.confirm(f"{what}. Continue it?", default=True):
        raise UsageError("nothing was changed; give the new run a --name")
