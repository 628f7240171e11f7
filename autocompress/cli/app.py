"""The commands of the command line: each parses its options, calls the Python interface and prints the result.

Imports stay inside the commands, so that ``--help`` answers at once and reading a run needs no torch.
"""

import errno
import gc
import json
import logging
import os
import shlex
import sys
import textwrap
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from autocompress.cli.options import (
    INTERRUPTED,
    AsJson,
    Format,
    Kind,
    Plugins,
    Run,
    Runs,
    Sign,
    TableFormat,
    confirm_resume,
    drop_unset,
    load_plugins,
    parse_limits,
    prepare_signature,
    print_dry_run,
    print_json,
    print_rows,
)
from autocompress.cli.terminal import (
    VerbosityGroup,
    configure_logging,
    make_console,
    print_prose,
    print_text,
    print_version,
    progress_console,
    replace_unprintable,
)
from autocompress.errors import AutocompressError, NoCandidateError, StorageError, UnfinishedRunError, UsageError

app = typer.Typer(
    name="autocompress",
    cls=VerbosityGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: autocompress search digits",
)


@app.callback()
def declare_version(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A search space goes in; a Pareto front of deployable, verified models comes out."""


@app.command(epilog="Example: autocompress search digits --trials 20")
def search(
    spec: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a shipped search space.", metavar="SPEC")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Maximum number of trials.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Maximum wall-clock time of the search, in minutes.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Worker processes; 0 starts one per core.")] = None,
    backend: Annotated[str | None, typer.Option(help="Backend that runs the trials: local, serial or ray.")] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The Ray cluster to join; by default, ray starts one on this machine."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the search.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; the spec's name by default.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the spec; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of that name.")] = False,
    earlier: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="An earlier run of the task, whose trials this search starts from."),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option("--log", metavar="NAME", help="Log while it runs: tensorboard or mlflow; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the spec, print the search space and the budget, and stop.")
    ] = False,
    plugin: Plugins = None,
    runs: Runs = Path("reports"),
) -> None:
    """Run a search and print the front with the recommended candidate."""
    load_plugins(plugin)
    if spec is None:
        if not plugin:
            raise UsageError("search needs a SPEC, for example: autocompress search digits")
        spec = "module"
    placement = drop_unset({"search.backend": backend, "search.address": address})
    overrides = [*(setting or []), *(f"{key}={value}" for key, value in placement.items() if value)]
    if dry_run:
        budget = {"search.trials": trials, "search.minutes": minutes, "search.workers": workers, "search.seed": seed}
        options = drop_unset({"name": name, **budget})
        print_dry_run(spec, [*overrides, *(f"{key}={value}" for key, value in options.items())])
        return
    from autocompress import api
    from autocompress.cli.output import print_outcome
    from autocompress.cli.progress import SearchDisplay
    from autocompress.cli.terminal import StopSignals

    command = "autocompress " + shlex.join(sys.argv[1:])

    def run_search(resume: bool) -> api.Front:
        display = SearchDisplay(progress_console())
        try:
            with display:
                return api.search(
                    spec,
                    trials=trials,
                    minutes=minutes,
                    workers=workers,
                    seed=seed,
                    name=name,
                    overrides=overrides,
                    resume=resume,
                    warm_start=earlier,
                    log=log or (),
                    runs=runs,
                    events=display.events,
                    command=command,
                )
        except UnfinishedRunError as error:
            confirm_resume(error)
            return run_search(True)

    with StopSignals() as signals:
        try:
            front = run_search(resume)
        except KeyboardInterrupt:
            resume_command = command if resume else f"{command} --resume"
            print_prose(f"interrupted; all results are stored. Continue with: {resume_command}", stderr=True)
            raise typer.Exit(signals.exit_code) from None
    print_outcome(front, plugin or [])


@app.command(epilog="Example: autocompress init --task digits > my_space.yaml")
def init(
    task: Annotated[str, typer.Option(help="Task of the spec; see `autocompress list tasks`.")] = "digits",
) -> None:
    """Print a commented spec to start from."""
    from autocompress.engine.spec import list_shipped_spaces
    from autocompress.errors import did_you_mean

    spaces = list_shipped_spaces()
    if task not in spaces:
        raise UsageError(f"no search space is included for the task '{task}': {did_you_mean(task, spaces)}")
    print_text(spaces[task].read_text(encoding="utf-8"), end="")


@app.command(epilog="Example: autocompress status digits --watch")
def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Update the display until the run ends.")] = False,
    form: Format = TableFormat.table,
    runs: Runs = Path("reports"),
) -> None:
    """Show the number of trials by state, failures by reason, and the front so far."""
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


@app.command(epilog="Example: autocompress pause digits")
def pause(run: Run, runs: Runs = Path("reports")) -> None:
    """Let a search that runs in another terminal pause, as soon as the parts of trials that are running have ended."""
    from autocompress import api

    front = api.load(run, runs)
    front.pause()
    print_prose(
        f"{front.folder} starts no more trials, and its clock stands still once the running ones have ended; continue "
        f"with: autocompress resume {shlex.quote(run)}"
    )
    if not front.is_running:
        print_text("note: no process on this machine runs it", file=sys.stderr)


@app.command(epilog="Example: autocompress resume digits")
def resume(run: Run, runs: Runs = Path("reports")) -> None:
    """Let a paused search go on; one whose process has ended is continued by search --resume."""
    from autocompress import api

    front = api.load(run, runs)
    front.resume()
    print_text(f"{front.folder} goes on")


@app.command(epilog="Example: autocompress report digits --open")
def report(
    names: Annotated[
        list[str], typer.Argument(help="A run folder, or its name under reports/; several for --site.", metavar="RUN")
    ],
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the page on this machine and update it while the search runs.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; by default the run folder.", metavar="FOLDER")
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(help="Write the pages of all runs and an index into this folder.", metavar="FOLDER"),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port for --live; 0 takes a free one.")] = 0,
    reference: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Another run whose hypervolume the page shows for comparison, now and later."),
    ] = None,
    runs: Runs = Path("reports"),
) -> None:
    """Write the page, and the same data as CSV, JSON and Parquet."""
    from autocompress import api

    if site is not None:
        if live or out is not None or reference is not None:
            raise UsageError("--site writes finished pages of its own; leave --live, --out and --reference out")
        _show_page(api.write_site(names, site, runs), show=show)
        return
    if len(names) > 1:
        raise UsageError(f"{len(names)} runs are given: --site FOLDER writes their pages and an index")
    (run,) = names
    if reference is not None:
        api.load(run, runs).refer(api.load(reference, runs))
    if live:
        import webbrowser

        from autocompress.cli.output import serve_live

        serve_live(api.find_run(run, runs), port, webbrowser.open if show else len)
        return
    _show_page(api.load(run, runs).report(out), show=show)


def _show_page(page: Path, *, show: bool) -> None:
    print_text(page)
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


@app.command(epilog="Example: autocompress compare digits digits-random --out compare.html")
def compare(
    names: Annotated[list[str], typer.Argument(help="Run folders, or their names under reports/.", metavar="RUN RUN")],
    out: Annotated[Path, typer.Option(help="Path of the page.", metavar="FILE")] = Path("compare.html"),
    form: Format = TableFormat.table,
    runs: Runs = Path("reports"),
) -> None:
    """Compare runs of one task: fronts, hypervolume over time, and scores at equal cost."""
    from autocompress import api
    from autocompress.cli.output import plain_table
    from autocompress.report.comparison_page import (
        column_headings,
        comparison_rows,
        summarize_comparison,
        table_cells,
    )

    comparison = api.compare(names, runs, page=out)
    if form is not TableFormat.table:
        print_rows(comparison_rows(comparison), form)
        return
    make_console().print(plain_table(column_headings(comparison), table_cells(comparison)))
    print_prose(f"scores at fractions of the teacher's cost; {summarize_comparison(comparison)}")
    print_text(f"page: {out}")


@app.command(epilog='Example: autocompress front digits --where "effective_flops <= 2e6 and accuracy >= 0.95"')
def front(
    run: Run,
    where: Annotated[str | None, typer.Option(help="Condition on columns, with and, or, not.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All candidates instead of the front.")] = False,
    form: Format = TableFormat.table,
    runs: Runs = Path("reports"),
) -> None:
    """Print the front, or its candidates that satisfy a condition."""
    from autocompress import api
    from autocompress.analysis.query import filter_rows as select
    from autocompress.cli.output import print_front

    run_front = api.load(run, runs)
    candidates = run_front.candidates if everything else run_front.to_pandas()
    if where is not None:
        candidates = select(candidates, where)
    if not len(candidates):
        raise NoCandidateError("no candidate satisfies this" if where else f"{run_front.folder} has no front yet")
    # Nested columns are in the JSON and Parquet files of the run.
    flat = candidates.drop(columns=["details", "config"])
    if form is TableFormat.json:
        print_text(flat.to_json(orient="records", indent=1))
    elif form is TableFormat.csv:
        print_text(flat.to_csv(index=False), end="")
    else:
        print_front(candidates, run_front.info, run_front.info.recommended)


@app.command(epilog="Example: autocompress pick digits --max effective_flops=20e3 --prefer accuracy")
def pick(
    run: Run,
    most: Annotated[
        list[str] | None, typer.Option("--max", metavar="NAME=VALUE", help="Upper limit; repeatable.")
    ] = None,
    least: Annotated[
        list[str] | None, typer.Option("--min", metavar="NAME=VALUE", help="Lower limit; repeatable.")
    ] = None,
    prefer: Annotated[str | None, typer.Option(help="Objective to optimize within the limits.")] = None,
    knee: Annotated[bool, typer.Option("--knee", help="Choose the knee of the front.")] = False,
    candidate: Annotated[str | None, typer.Option(metavar="ID", help="Choose this candidate.")] = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Allow candidates without kernels on the target of the run.")
    ] = False,
    guarantee: Annotated[
        float | None,
        typer.Option(metavar="CONFIDENCE", help="Choose the cheapest one that is certified, all tests together."),
    ] = None,
    max_drop: Annotated[
        str | None, typer.Option(metavar="LOSS", help="Allowed loss, such as 0.01 or 1%; by default that of the space.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="FILTER", help="Choose among candidates with this: 'bytes <= 30KB or cnn'.")
    ] = None,
    as_json: AsJson = False,
    runs: Runs = Path("reports"),
) -> None:
    """Choose one candidate and print the reason."""
    from autocompress import api
    from autocompress.cli.output import print_front, print_pick

    front = api.load(run, runs)
    limits = {"max": parse_limits(most, "--max"), "min": parse_limits(least, "--min")}
    drop = None if max_drop is None else parse_limits([f"max_drop={max_drop}"], "--max")["max_drop"]
    chosen = front.pick(
        **limits,
        prefer=prefer,
        knee=knee,
        candidate=candidate,
        simulated=simulated,
        guarantee=guarantee,
        max_drop=drop,
        where=where,
    )
    if as_json:
        # NaN, which JSON does not have, differs from itself.
        row = {key: value for key, value in chosen.row.items() if key != "details" and value == value}
        row["config"] = json.loads(row["config"])
        certificate = None if chosen.certificate is None else asdict(chosen.certificate)
        print_text(json.dumps({"id": chosen.id, "reason": chosen.reason, "certificate": certificate, "row": row}))
        return
    rows = front.candidates[front.candidates["id"] == chosen.id]
    print_front(rows, front.info, chosen.id)
    print_pick(chosen, front)
    print_text(f"next: autocompress export {shlex.quote(run)} --candidate {shlex.quote(chosen.id)} --verify")


@app.command(epilog="Example: autocompress confirm digits --top 5 --seeds 5")
def confirm(
    run: Run,
    top: Annotated[
        int, typer.Option(min=1, help="Number of candidates: the pick and its neighbours on the front.")
    ] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Number of repeats of each candidate.")] = 5,
    candidate: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Repeat this candidate instead; repeatable.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Worker processes; by default those of the run.")] = None,
    backend: Annotated[str | None, typer.Option(help="Backend; by default that of the run.")] = None,
    form: Format = TableFormat.table,
    plugin: Plugins = None,
    runs: Runs = Path("reports"),
) -> None:
    """Repeat the top candidates from scratch with new seeds; print scores with intervals on select_val and test."""
    from autocompress import api
    from autocompress.cli.output import print_confirmed
    from autocompress.cli.progress import CountDisplay

    load_plugins(plugin)
    front = api.load(run, runs)
    try:
        with CountDisplay(progress_console(), "repeating from scratch", "repeated {} trainings") as display:
            front.confirm(
                top, seeds, candidates=candidate or (), workers=workers, backend=backend, on_progress=display.update
            )
    except KeyboardInterrupt:
        print_prose("interrupted; finished repeats are stored. Continue with the same command", stderr=True)
        raise typer.Exit(INTERRUPTED) from None
    if form is TableFormat.table:
        print_confirmed(front)
    else:
        print_rows(json.loads(front.confirmed().to_json(orient="records")), form)


@app.command(epilog="Example: autocompress export digits --candidate t12c7 --verify")
def export(
    run: Run,
    candidate: Annotated[
        str | None, typer.Option(metavar="ID", help="Candidate; by default the recommended one.")
    ] = None,
    to: Annotated[str, typer.Option(help="Format; only onnx is available.")] = "onnx",
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Run the exported file on the test split and compare its score."),
    ] = True,
    sign: Sign = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[HEAD=]auto|NUMBER",
            help="Probability above which the second of two classes is predicted; auto chooses the best one.",
        ),
    ] = None,
    integer: Annotated[
        bool,
        typer.Option(
            "--integer", help="Compute all quantized layers in integers, also where floating point is faster here."
        ),
    ] = False,
    as_json: AsJson = False,
    plugin: Plugins = None,
    runs: Runs = Path("reports"),
) -> None:
    """Export one candidate as a deployable folder and verify it."""
    if to != "onnx":
        raise UsageError(f"--to {to}: the only format is onnx")
    from autocompress import api
    from autocompress.export.candidate import export_candidate

    add_signature = prepare_signature(sign)
    load_plugins(plugin)
    front = api.load(run, runs)
    identity = candidate or front.pick().id
    exported = export_candidate(front.folder, identity, verify=verify, thresholds=threshold or (), integer=integer)
    add_signature(exported.folder)
    if as_json:
        print_json(exported)
        return
    for path in sorted(exported.folder.iterdir()):
        print_text(f"{path}  {path.stat().st_size:,} bytes")
    for sentence in exported.thresholds:
        print_prose(sentence)
    if exported.verification is not None:
        print_prose(f"verified on the test split: {exported.verification}")


@app.command(epilog="Example: autocompress adapt digits --data recent.npz --minutes 2")
def adapt(
    source: Annotated[str, typer.Argument(help="The source: an exported folder, or a run.", metavar="ARTIFACT|RUN")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Recent examples, .npz or .safetensors: the inputs of model.onnx by name, and the heads if labelled.",
        ),
    ],
    candidate: Annotated[
        str | None, typer.Option(metavar="ID", help="Candidate of the run; by default the recommended one.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0, help="Time limit of the training; 0 only estimates statistics and ranges again.")
    ] = 1.0,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="The examples are in the order of time: score the latest ones.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the adaptation.")] = 0,
    sign: Sign = None,
    as_json: AsJson = False,
    plugin: Plugins = None,
    runs: Runs = Path("reports"),
) -> None:
    """Adapt a model to recent data; write a new, verified version beside the old one."""
    from autocompress import api

    add_signature = prepare_signature(sign)
    load_plugins(plugin)
    adapted = api.adapt(source, data, candidate=candidate, minutes=minutes, ordered=ordered, seed=seed, runs=runs)
    add_signature(adapted.folder)
    if as_json:
        print_json(adapted)
        return
    print_text(adapted.folder)
    print_text(adapted)


@app.command(epilog="Example: autocompress join reports/digits/picks/t12c7 reports/digits/picks/t12c3 --out joined")
def join(
    artifacts: Annotated[
        list[Path], typer.Argument(help="Exported folders (artifacts) of one task.", metavar="ARTIFACT ARTIFACT")
    ],
    out: Annotated[Path, typer.Option(help="Path of the new folder.", metavar="FOLDER")],
    sign: Sign = None,
    as_json: AsJson = False,
    plugin: Plugins = None,
) -> None:
    """Write several exported models as one folder that a program switches between."""
    from autocompress.export.switchable import join_artifacts

    add_signature = prepare_signature(sign)
    load_plugins(plugin)
    joined = join_artifacts(artifacts, out)
    add_signature(joined.folder)
    if as_json:
        print_json(joined)
        return
    print_text(joined.folder)
    print_text(joined)


@app.command(epilog="Example: autocompress bench digits, or autocompress bench reports/digits/picks/t12c7 --batch 8")
def bench(
    target: Annotated[str, typer.Argument(help="The target: an exported folder, or a run.", metavar="ARTIFACT|RUN")],
    candidate: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Candidate of the run, instead of its front; repeatable.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples per call.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of onnxruntime.")] = 1,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Duration of the measurement of each file.")] = None,
    form: Format = TableFormat.table,
    plugin: Plugins = None,
    runs: Runs = Path("reports"),
) -> None:
    """Measure latency on this machine: an exported model, or the front of a run."""
    from autocompress.cli.output import bench_artifact, bench_run

    if (Path(target) / "manifest.json").is_file():
        bench_artifact(Path(target), batch=batch, threads=threads, seconds=seconds, form=form)
    else:
        load_plugins(plugin)
        bench_run(target, runs, candidate or (), batch=batch, threads=threads, seconds=seconds, form=form)


@app.command(epilog="Example: autocompress cascade digits")
def cascade(
    run: Run,
    candidate: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Candidate of the run, instead of its front; repeatable.")
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Allow candidates without kernels on the target of the run.")
    ] = False,
    as_json: AsJson = False,
    plugin: Plugins = None,
    runs: Runs = Path("reports"),
) -> None:
    """Find two candidates of which the larger answers where the smaller is unsure; write cascade.json."""
    from autocompress import api
    from autocompress.cli.output import print_cascade
    from autocompress.cli.progress import CountDisplay

    load_plugins(plugin)
    front = api.load(run, runs)
    with CountDisplay(progress_console(), "rebuilding candidates", "rebuilt {} candidates") as display:
        search = front.cascade(candidate or (), simulated=simulated, on_progress=display.update)
    if as_json:
        print_json(search)
    else:
        print_cascade(search, front.folder)


@app.command(epilog="Example: autocompress serve digits --budget-ms 5")
def serve(
    sources: Annotated[
        list[str], typer.Argument(help="A run, or exported folders (artifacts) of one run.", metavar="RUN|ARTIFACT ...")
    ],
    budget_ms: Annotated[
        float | None,
        typer.Option(metavar="MS", help="Latency budget: cheaper models answer when the load would break it."),
    ] = None,
    candidate: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Candidate of the run to serve; repeatable.")
    ] = None,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Serve the cascade of the run, see autocompress cascade.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Threads that run models.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of onnxruntime in each model.")] = 1,
    queue: Annotated[int, typer.Option(min=1, help="Examples that may wait; further requests get status 503.")] = 1024,
    max_body: Annotated[int, typer.Option(min=1, metavar="BYTES", help="Largest body of a request.")] = 10_000_000,
    key: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Ed25519 public key (PEM) that must have signed the exported folders."),
    ] = None,
    allow_adapt: Annotated[
        bool, typer.Option("--allow-adapt", help="Keep recent inputs, and adapt the models to them on POST /adapt.")
    ] = False,
    plugin: Plugins = None,
    runs: Runs = Path("reports"),
) -> None:
    """Answer predictions over HTTP, with health and Prometheus metrics; needs the extra `serve`."""
    from autocompress.cli.serving import ServeRequest, run_service

    load_plugins(plugin)
    run_service(
        ServeRequest(
            tuple(sources),
            runs,
            budget_ms,
            tuple(candidate or ()),
            cascade,
            host,
            port,
            workers,
            threads,
            queue,
            max_body,
            allow_adapt,
            tuple(plugin or ()),
            key,
        )
    )


@app.command("list", epilog="Example: autocompress list methods")
def list_(
    kind: Annotated[Kind, typer.Argument(help="Kind of names to list.")], form: Format = TableFormat.table
) -> None:
    """List the names that a search space can use."""
    from autocompress.cli.listing import print_listing, read_listing

    rows = read_listing(kind.value)
    if form is TableFormat.table:
        print_listing(rows)
    else:
        print_rows(rows, form)


@app.command(epilog="Example: autocompress doctor --ray")
def doctor(
    ray: Annotated[
        bool, typer.Option("--ray", help="Also start a local Ray cluster, which takes up to a minute.")
    ] = False,
    as_json: AsJson = False,
    runs: Runs = Path("reports"),
) -> None:
    """Check versions, libraries, cores, memory and folders; print a fix for each fault."""
    from autocompress.cli.doctor import check_machine
    from autocompress.cli.output import print_checks

    if not print_checks(check_machine(runs, starts_ray=ray), make_console(), as_json=as_json):
        raise typer.Exit(1)


@app.command(epilog="Example: autocompress schema > spec.schema.json")
def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from autocompress.engine.spec import json_schema

    print_text(json_schema())


def main() -> None:
    """Run the command line; an expected error is printed as one line and sets the exit code."""
    # A command lives for seconds and keeps most objects; with the default thresholds, the garbage collector takes a
    # fifth of the time of `report`.
    gc.freeze()
    gc.set_threshold(300_000, 50, 50)
    _open_closed_streams()
    configure_logging()
    for stream in (sys.stdout, sys.stderr):
        replace_unprintable(stream)
    try:
        _run_app()
    except BrokenPipeError:
        # The reader of the pipe has closed it, as `head` does. Python would report the flush at exit otherwise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        # What the system refuses to a command, such as a full disk behind standard output.
        logging.getLogger(__name__).debug("the command fails", exc_info=True)
        prefix = f"{error.filename}: " if error.filename else ""
        # Standard error may be full, too.
        with suppress(OSError):
            print_prose(f"error: {prefix}{error.strerror or error}", stderr=True)
        _discard_output()
        raise SystemExit(StorageError.exit_code if error.errno == errno.ENOSPC else 1) from None
    finally:
        # The interpreter collects garbage when it ends, which would take a tenth of the time of a command; the memory
        # goes back to the system anyway.
        gc.freeze()


def _run_app() -> None:
    """Run the command line; what a user can mend is printed as one line.

    Raises:
        SystemExit: The command has ended, with its exit code.
        OSError: A standard stream takes nothing, or the system refuses something else.
    """
    try:
        try:
            app()
        finally:
            # Here, where a full disk behind standard output is an error like others: Python would ignore it at its end.
            sys.stdout.flush()
    except AutocompressError as error:
        print_prose(f"error: {error}", stderr=True)
        if error.excerpt:
            print_text(textwrap.indent(error.excerpt, "  "), file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        print_prose(f"error: the memory of this machine does not suffice{reason}; give less data", stderr=True)
        raise SystemExit(1) from None


def _open_closed_streams() -> None:
    """Open the standard streams that the caller has closed, before another file gets the number of one of them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _discard_output() -> None:
    """Write what the standard streams still hold; what they refuse is thrown away, instead of failing again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
