"""The index of several runs: a folder of pages that any web server can show, and that works without one.

Runs of one task, with the same objectives and data, are compared on a page of their own.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from autocompress.analysis.selection import Pick
from autocompress.core.atomic import write_atomic
from autocompress.core.formatting import format_duration, format_plural
from autocompress.errors import UsageError
from autocompress.report.comparison import RunTables, check_comparable, compare_runs
from autocompress.report.comparison_page import write_comparison
from autocompress.report.page import PAGE, load_templates, read_asset
from autocompress.report.summary import summarize_result

INDEX = "index.html"


@dataclass(frozen=True)
class SiteRun:
    """One run of a site.

    Attributes:
        tables: Tables and description of the run, under a name of its own in the site.
        folder: Name of the folder of its page in the site.
        picked: Its recommended candidate, if there is one.
    """

    tables: RunTables
    folder: str
    picked: Pick | None


def name_folders(names: Sequence[str]) -> list[str]:
    """Return a folder name for each run, without separators.

    Example:
        >>> name_folders(["monday/digits", "tuesday/digits"])
        ['monday-digits', 'tuesday-digits']
    """
    folders: list[str] = []
    for name in names:
        folder = name.replace("/", "-").replace("\\", "-").strip(".") or "run"
        # Names that differ by a separator only would share a folder.
        choices = itertools.chain([folder], (f"{folder}-{number}" for number in itertools.count(2)))
        folders.append(next(choice for choice in choices if choice not in folders))
    return folders


def write_index(site: Path, runs: Sequence[SiteRun]) -> Path:
    """Write the index, and a comparison of each group of runs that compare; return the path of the index.

    Args:
        site: Folder of the site, which holds the page of each run in a folder of its own.
        runs: The runs in the order of the index.

    Raises:
        StorageError: No space is left, or the folder cannot be written.
    """
    comparisons = []
    for number, group in enumerate(group_comparable([run.tables for run in runs]), 1):
        comparison, file = compare_runs(group), f"compare-{number}.html"
        write_comparison(site / file, comparison)
        comparisons.append({"href": file, "name": f"{group[0].info.task}: {', '.join(run.name for run in group)}"})
    content = {
        "title": format_plural(len(runs), "run"),
        "rows": [_describe_run(run) for run in runs],
        "comparisons": comparisons,
        "style": Markup(read_asset("page.css")),
    }
    page = load_templates().get_template("site.html.jinja").render(content)
    write_atomic(site / INDEX, page.encode("utf-8", "backslashreplace"))
    return site / INDEX


def group_comparable(runs: Sequence[RunTables]) -> list[list[RunTables]]:
    """Return the groups of two and more runs that have the same task, objectives and data."""
    groups: list[list[RunTables]] = []
    for run in runs:
        group = next((group for group in groups if _are_comparable(group[0], run)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return [group for group in groups if len(group) > 1]


def _are_comparable(first: RunTables, run: RunTables) -> bool:
    try:
        check_comparable(first, run)
    except UsageError:
        return False
    # A run without candidates compares with no other, as the first one too.
    return len(first.candidates) > 0


def _describe_run(run: SiteRun) -> dict[str, str]:
    tables = run.tables
    seconds = tables.info.seconds
    return {
        "href": f"{quote(run.folder)}/{PAGE}",
        "name": tables.name,
        "task": tables.info.task,
        "result": summarize_result(tables.candidates, tables.trials, tables.info, run.picked),
        "pick": "–" if run.picked is None else run.picked.id,
        "candidates": f"{len(tables.candidates):,}",
        "time": "–" if seconds is None else format_duration(seconds),
    }
