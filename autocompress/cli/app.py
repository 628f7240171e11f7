"""The verbs of the command line: parse, call, print.

Imports stay inside the verbs, so that ``--help`` answers at once and reading a run needs no torch.
"""

import gc
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autocompress.cli.options import (
    INTERRUPTED,
    Format,
    Kind,
    Plugins,
    Run,
    Runs,
    TableFormat,
    bounds,
    kept,
    load_plugins,
    offer,
    print_dry_run,
    print_rows,
)
from autocompress.errors import AutocompressError, NoCandidateError, UnfinishedRunError, UsageError

app = typer.Typer(
    name="autocompress",
    help="A search space goes in; a Pareto front of deployable, verified models comes out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: autocompress search digits",
)


@app.command(epilog="Example: autocompress search digits --trials 20")
def search(
    spec: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a shipped search space.", metavar="SPEC")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trainings at most.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Wall-clock of the search at most.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Worker processes; 0 takes one per core.")] = None,
    backend: Annotated[str | None, typer.Option(help="Where trials run: local, serial or ray.")] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The Ray cluster to join; without it, ray starts one here.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the search.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; the spec's name by default.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the spec; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of that name.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the spec, say what would be searched, stop.")
    ] = False,
    plugin: Plugins = None,
    runs: Runs = Path("reports"),
) -> None:
    """Search: train, cut, measure, and print the front with the recommended candidate."""
    from autocompress.cli.tables import console

    load_plugins(plugin)
    if spec is None:
        if not plugin:
            raise UsageError("search needs a SPEC, for example: autocompress search digits")
        spec = "module"
    places = {"search.backend": backend, "search.address": address}
    overrides = [*(setting or []), *(f"{key}={value}" for key, value in places.items() if value)]
    given = {"trials": trials, "minutes": minutes, "workers": workers, "seed": seed, "name": name}
    out = console()
    if dry_run:
        print_dry_run(spec, overrides, given)
        return
    from autocompress import api
    from autocompress.cli.progress import SearchDisplay
    from autocompress.cli.signals import Stopping

    command = "autocompress " + shlex.join(sys.argv[1:])

    def go(resume: bool) -> api.Front:
        display = SearchDisplay(out)
        told: dict[str, Any] = {"resume": resume, "runs": runs, "events": display.events, "command": command}
        try:
            with display:
                return api.search(spec, overrides=overrides, **told, **kept(given))
        except UnfinishedRunError as found:
            offer(found)
            return go(True)

    with Stopping() as stopping:
        try:
            front = go(resume)
        except KeyboardInterrupt:
            again = command if resume else f"{command} --resume"
            print(f"interrupted; what was found is kept. Continue with: {again}", file=sys.stderr)
            raise typer.Exit(stopping.exit_code) from None
    from autocompress.cli.output import print_outcome

    print_outcome(front, plugin or [])


@app.command(epilog="Example: autocompress init --task digits > my_space.yaml")
def init(
    task: Annotated[str, typer.Option(help="The task to search for; see `autocompress list tasks`.")] = "digits",
) -> None:
    """Print a commented spec to start from."""
    from autocompress.engine.spec import shipped_spaces
    from autocompress.errors import did_you_mean

    spaces = shipped_spaces()
    if task not in spaces:
        raise UsageError(f"no search space ships for the task '{task}': {did_you_mean(task, spaces)}")
    print(spaces[task].read_text(encoding="utf-8"), end="")


@app.command(epilog="Example: autocompress status digits --watch")
def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it until the run ends.")] = False,
    form: Format = TableFormat.table,
    runs: Runs = Path("reports"),
) -> None:
    """Show progress, failures by reason, and the front so far."""
    from autocompress import api
    from autocompress.cli.output import print_status, status_rows, watch_status

    if watch:
        try:
            watch_status(lambda: api.load(run, runs))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    elif form is TableFormat.table:
        print_status(api.load(run, runs))
    else:
        print_rows(status_rows(api.load(run, runs)), form)


@app.command(epilog="Example: autocompress report digits --open")
def report(
    run: Run,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Serve it on this machine while the search runs, always up to date.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write them here instead of the run folder.", metavar="FOLDER")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --live; 0 takes a free one.")] = 0,
    reference: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run to draw beside this one's hypervolume; it stays there.")
    ] = None,
    runs: Runs = Path("reports"),
) -> None:
    """Write the page with its CSV, JSON and Parquet twins."""
    from autocompress import api

    if reference is not None:
        api.load(run, runs).refer(api.load(reference, runs))
    if live:
        import webbrowser

        from autocompress.cli.output import serve_live

        serve_live(api.find_run(run, runs), port, webbrowser.open if show else len)
        return
    page = api.load(run, runs).report(out)
    print(page)
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


@app.command(epilog="Example: autocompress compare digits digits-random --out compare.html")
def compare(
    names: Annotated[list[str], typer.Argument(help="Run folders, or their names under reports/.", metavar="RUN RUN")],
    out: Annotated[Path, typer.Option(help="Where the page goes.", metavar="FILE")] = Path("compare.html"),
    form: Format = TableFormat.table,
    runs: Runs = Path("reports"),
) -> None:
    """Lay fronts over each other: hypervolume, hypervolume over time, and what is attained."""
    from autocompress import api
    from autocompress.cli.tables import console, plain_table
    from autocompress.report.comparison_page import columns, rows, verdict

    found = api.compare(names, runs, page=out)
    if form is not TableFormat.table:
        print_rows([dict(zip(columns(found), row, strict=True)) for row in rows(found)], form)
        return
    console().print(plain_table(columns(found), rows(found)))
    print(f"scores at shares of the teacher's cost; {verdict(found)}")
    print(f"page: {out}")


@app.command(epilog='Example: autocompress front digits --where "effective_flops <= 2e6 and accuracy >= 0.95"')
def front(
    run: Run,
    where: Annotated[str | None, typer.Option(help="Comparisons of columns, joined by and, or, not.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every candidate, not the front alone.")] = False,
    form: Format = TableFormat.table,
    runs: Runs = Path("reports"),
) -> None:
    """Print the front, or the part of it that satisfies an expression."""
    from autocompress import api
    from autocompress.analysis.query import where as select
    from autocompress.cli.tables import console, front_table

    found = api.load(run, runs)
    table = found.candidates if everything else found.to_pandas()
    if where is not None:
        table = select(table, where)
    if not len(table):
        raise NoCandidateError("no candidate satisfies this" if where else f"{found.folder} has no front yet")
    plain = table.drop(columns=["details", "config"])
    if form is TableFormat.json:
        print(plain.to_json(orient="records", indent=1))
    elif form is TableFormat.csv:
        print(plain.to_csv(index=False), end="")
    else:
        console().print(front_table(table, found.meta["objectives"], found.meta.get("recommended", "")))


@app.command(epilog="Example: autocompress pick digits --max effective_flops=20e3 --prefer accuracy")
def pick(
    run: Run,
    most: Annotated[list[str] | None, typer.Option("--max", metavar="NAME=VALUE", help="At most; repeatable.")] = None,
    least: Annotated[
        list[str] | None, typer.Option("--min", metavar="NAME=VALUE", help="At least; repeatable.")
    ] = None,
    prefer: Annotated[str | None, typer.Option(help="The objective to be best at.")] = None,
    knee: Annotated[bool, typer.Option("--knee", help="The bend of the front.")] = False,
    candidate: Annotated[str | None, typer.Option(metavar="ID", help="This candidate.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the candidate's whole row as JSON.")] = False,
    runs: Runs = Path("reports"),
) -> None:
    """Choose one candidate, and say why."""
    from autocompress import api
    from autocompress.cli.output import print_pick
    from autocompress.cli.tables import console, front_table

    found = api.load(run, runs)
    chosen = found.pick(max=bounds(most), min=bounds(least), prefer=prefer, knee=knee, candidate=candidate)
    if as_json:
        row = {key: value for key, value in chosen.row.items() if key != "details" and value == value}
        print(
            json.dumps({"id": chosen.id, "reason": chosen.reason, "row": {**row, "config": json.loads(row["config"])}})
        )
        return
    rows = found.candidates[found.candidates["id"] == chosen.id]
    out = console()
    out.print(front_table(rows, found.meta["objectives"], chosen.id))
    print_pick(chosen, found)
    print(f"next: autocompress export {shlex.quote(run)} --candidate {chosen.id} --verify")


@app.command(epilog="Example: autocompress confirm digits --top 5 --seeds 5")
def confirm(
    run: Run,
    top: Annotated[int, typer.Option(min=1, help="The pick, and those beside it on the front, by turns.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="How often each is trained again.")] = 5,
    candidate: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="This candidate instead; repeatable.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Worker processes; the run's own by default.")] = None,
    backend: Annotated[str | None, typer.Option(help="Where to train; the run's own by default.")] = None,
    plugin: Plugins = None,
    runs: Runs = Path("reports"),
) -> None:
    """Train the top candidates again from scratch with several seeds; give intervals on select_val and test."""
    from autocompress import api
    from autocompress.cli.output import print_confirmed
    from autocompress.cli.progress import CountDisplay
    from autocompress.cli.tables import console

    load_plugins(plugin)
    found = api.load(run, runs)
    try:
        with CountDisplay(console(), "repeating from scratch", "repeated {} trainings") as display:
            found.confirm(
                top, seeds, candidates=candidate or (), workers=workers, backend=backend, on_progress=display.progress
            )
    except KeyboardInterrupt:
        print("interrupted; what was repeated is kept. Continue with the same command", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    print_confirmed(found)


@app.command(epilog="Example: autocompress export digits --candidate t12c7 --verify")
def export(
    run: Run,
    candidate: Annotated[str | None, typer.Option(metavar="ID", help="The recommended one by default.")] = None,
    to: Annotated[str, typer.Option(help="The format; onnx is the one there is.")] = "onnx",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run the file on the test split and compare.")
    ] = True,
    plugin: Plugins = None,
    runs: Runs = Path("reports"),
) -> None:
    """Write one candidate as a deployable folder, and measure it again."""
    if to != "onnx":
        raise UsageError(f"--to {to}: the one format is onnx")
    from autocompress import api
    from autocompress.export.candidate import export_candidate

    load_plugins(plugin)
    found = api.load(run, runs)
    exported = export_candidate(found.folder, candidate or found.pick().id, verify=verify)
    for path in sorted(exported.folder.iterdir()):
        print(f"{path}  {path.stat().st_size:,} bytes")
    if exported.verification is not None:
        print(f"verified on the test split: {exported.verification}")


@app.command(epilog="Example: autocompress bench digits, or autocompress bench reports/digits/picks/t12c7 --batch 8")
def bench(
    what: Annotated[str, typer.Argument(help="An exported folder; or a run, for its front.", metavar="ARTIFACT|RUN")],
    candidate: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Of a run, this candidate instead; repeatable.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples in each run.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of onnxruntime.")] = 1,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="How long to measure each file.")] = None,
    plugin: Plugins = None,
    runs: Runs = Path("reports"),
) -> None:
    """Measure latency on this machine: of an exported model, with its memory, or of a run's front for its page."""
    from autocompress.cli.output import bench_artifact, bench_run

    given = kept({"seconds": seconds})
    if (Path(what) / "manifest.json").is_file():
        bench_artifact(Path(what), batch=batch, threads=threads, **given)
    else:
        load_plugins(plugin)
        bench_run(what, runs, candidate or (), batch=batch, threads=threads, **given)


@app.command("list", epilog="Example: autocompress list methods")
def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")], form: Format = TableFormat.table) -> None:
    """List what a search space can name."""
    from autocompress.cli import catalogue

    found = getattr(catalogue, kind.value)()
    if form is TableFormat.table:
        from autocompress.cli.tables import console

        console().print(catalogue.table(found))
    else:
        print_rows(found, form)


@app.command(epilog="Example: autocompress doctor")
def doctor(runs: Runs = Path("reports")) -> None:
    """Check versions, libraries, cores, memory and folders; exit 1 with the fix where something is broken."""
    from autocompress.cli.doctor import checkup
    from autocompress.cli.output import print_checks
    from autocompress.cli.tables import console

    if not print_checks(checkup(runs), console()):
        raise typer.Exit(1)


@app.command(epilog="Example: autocompress schema > spec.schema.json")
def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from autocompress.engine.spec import schema as spec_schema

    print(spec_schema())


def main() -> None:
    """Run the command line; every expected fault is one line and its exit code."""
    # A verb lives for seconds and keeps most of what it makes; collecting cycles costs a fifth of a report.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    try:
        app()
    except AutocompressError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        # The reader of a pipe has gone; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
