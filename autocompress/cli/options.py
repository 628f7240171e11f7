"""Options that several commands share, and tables printed for other programs."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from autocompress.cli.terminal import print_prose, print_text
from autocompress.core.formatting import parse_quantity
from autocompress.core.untrusted import escape_controls
from autocompress.errors import UnfinishedRunError, UsageError

INTERRUPTED = 130

Value = TypeVar("Value")


class TableFormat(StrEnum):
    """Format of a printed table."""

    table = "table"
    json = "json"
    csv = "csv"


class Kind(StrEnum):
    """Kinds of things that can be listed."""

    tasks = "tasks"
    methods = "methods"
    objectives = "objectives"
    modes = "modes"
    spaces = "spaces"
    targets = "targets"


Format = Annotated[TableFormat, typer.Option("--format", "-f", help="Output format.")]
Run = Annotated[str, typer.Argument(help="A run folder, or its name under reports/.", metavar="RUN")]
Runs = Annotated[Path, typer.Option(help="The folder that holds runs.", metavar="FOLDER")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="A Python file that registers your own task; repeatable."),
]

Sign = Annotated[
    Path | None,
    typer.Option(metavar="KEY", help="Sign the folder with this Ed25519 private key (PEM); needs the extra `sign`."),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

_LIMIT_EXAMPLES = {"--max": "bytes=30KB", "--min": "accuracy=97%"}


def load_plugins(plugins: list[Path] | None) -> None:
    """Run the plugin files of the command line."""
    if plugins:
        from autocompress.core.registry import load_plugin

        for path in plugins:
            load_plugin(path)


def prepare_signature(path: Path | None) -> Callable[[Path], object]:
    """Return what signs a folder with the key of a file; the key is read now, before anything expensive starts.

    Raises:
        UsageError: The key cannot be used.
    """
    if path is None:
        return lambda folder: None
    from autocompress.export.signing import load_private_key, sign_artifact

    key = load_private_key(path)
    return lambda folder: sign_artifact(folder, key)


def drop_unset(options: Mapping[str, Value | None]) -> dict[str, Value]:
    """Return the options that have a value."""
    return {key: value for key, value in options.items() if value is not None}


def print_dry_run(spec: str, overrides: Sequence[str]) -> None:
    """Check a spec and print its search space and budget."""
    from autocompress.engine.runner import make_plan
    from autocompress.engine.spec import load_spec
    from autocompress.engine.transfer import describe_transfer

    plan = make_plan(load_spec(spec, overrides))
    resolved = plan.source.spec
    search = resolved.search
    print_prose(f"{plan.source.name} is valid: task {plan.task.name}, mode {search.mode}, sampler {search.sampler}")
    for name, domain in plan.space.dimensions():
        print_prose(f"  {name}: {domain}")
    for term in plan.space.required:
        print_prose(f"  distill.{term}: in every trial")
    if resolved.distill.transfer is not None:
        print_prose(f"  distill.transfer: {describe_transfer(resolved.distill.transfer)}")
    if search.mode == "amortized":
        print_prose(f"  {len(plan.space.compression_grid())} candidates are made from each trial")
    for notice in plan.notices:
        print_prose(f"notice: {notice}")
    minutes = "" if search.minutes is None else f", {search.minutes:g} minutes"
    print_prose(f"budget: {search.trials} trials{minutes}; objectives: {', '.join(resolved.objectives)}")


def parse_limits(pairs: list[str] | None, option: str) -> dict[str, float]:
    """Return the ``NAME=NUMBER`` pairs of an option as a dictionary.

    Args:
        pairs: Texts such as ``bytes=30KB`` or ``accuracy=97%``.
        option: Name of the option, for the error message: ``--max`` or ``--min``.

    Raises:
        UsageError: A text is not such a pair.

    Example:
        >>> parse_limits(["bytes=30KB", "accuracy=97%"], "--min")
        {'bytes': 30000.0, 'accuracy': 0.97}
    """
    limits = {}
    for pair in pairs or []:
        name, _, text = (part.strip() for part in pair.partition("="))
        if not name:
            raise UsageError(f"Invalid limit '{pair}'. Write for example {option} {_LIMIT_EXAMPLES[option]}.")
        try:
            limits[name] = parse_quantity(text, name)
        except ValueError as error:
            raise UsageError(
                f"{option} {pair}: {error}; write for example {option} {_LIMIT_EXAMPLES[option]}"
            ) from None
    return limits


def print_rows(rows: Sequence[Mapping[str, object]], form: TableFormat) -> None:
    """Print rows as JSON, or as CSV with the first row's keys as columns."""
    if form is TableFormat.json:
        print_text(json.dumps(rows, indent=1))
        return
    content = io.StringIO()
    writer = csv.DictWriter(content, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    print_text(content.getvalue(), end="")


def print_json(result: object) -> None:
    """Print a dataclass as one JSON object; a number that JSON does not have is null.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Made:
        ...     folder: Path
        ...     score: float
        >>> print_json(Made(Path("picks/t1c0"), float("nan")))
        {"folder":"picks/t1c0","score":null}
    """
    from pydantic import TypeAdapter

    print_text(TypeAdapter(type(result)).dump_json(result).decode())


def confirm_resume(error: UnfinishedRunError) -> None:
    """Ask whether to continue an unfinished run; without a terminal, raise the error, which names the option.

    Raises:
        UnfinishedRunError: The terminal is not interactive.
        UsageError: The answer is no.
    """
    from autocompress.cli.terminal import is_interactive

    if not is_interactive():
        raise error
    state = str(error).partition(";")[0]
    if not typer.confirm(escape_controls(f"{state}. Continue it?"), default=True):
        raise UsageError("nothing was changed; give the new run a --name")
