"""What must hold whatever goes wrong: `python -m benchmarks.faults [--rows 1 2 3]`.

Each row does harm to a search and counts what is lost. Where training does not matter, trials are pretended: driver,
sampler, store, workers and files are the real ones. A driver that is killed is a process of its own, killed with
SIGKILL; after the last kill the search runs to its end, and its store is compared with what was in it before.
"""

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.pretend import Pretend, outcome

SPEC = """\
task: digits
student: {cnn: {width: {low: 4, high: 64}, depth: [1, 2]}}
distill: {none: {}, soft_target: {temperature: {low: 1, high: 10}}}
quantize: {none: {}, post_training: {weight_bits: [4, 8]}}
"""
OBJECTIVES = [
    {"name": "accuracy", "direction": "maximize", "unit": "", "kind": "score", "box": [0.1, 1.0]},
    {"name": "effective_flops", "direction": "minimize", "unit": "FLOPs", "kind": "cost", "box": [1e7, 1e2]},
]
#: Where a driver is killed: a function, and whether before or after it has done its work.
POINTS = {
    "before a job is recorded": ("study", "Study.add_job", False),
    "after a job was recorded": ("study", "Study.add_job", True),
    "after a training was sent to its next rung": ("study", "Study.continue_job", True),
    "before a result is stored": ("study", "Study.finish", False),
    "after the files of a result, before its rows": ("study", "write_atomic", True),
    "among the rows of a result": ("study", "candidate_row", False),
    "after a result was stored, before the sampler knows": ("study", "Study.finish", True),
    "after the sampler was told": ("engine.sampler", "Proposer.tell", True),
    "after a training was given up": ("study", "Study.stop", True),
}


@dataclass(frozen=True)
class Figure:
    """What a row came to."""

    wanted: str
    found: str
    held: bool


# -- a search that can be harmed --------------------------------------------------------------


def drive(folder: Path, trials: int, workers: int, pretend: Pretend, *overrides: str) -> bool:
    """Search, or go on with a search, in this process; return whether nothing but failures came of it."""
    from autocompress.backends.local import Local
    from autocompress.engine.driver import Driver
    from autocompress.engine.sampler import Proposer
    from autocompress.engine.space import open_space
    from autocompress.engine.spec import parse_spec
    from autocompress.study import DATABASE, Study

    begun = time.monotonic()
    source = parse_spec(SPEC, "x", [f"search.trials={trials}", "search.seed=3", *overrides])
    search = source.spec.search
    study = Study.open(folder) if (folder / DATABASE).exists() else Study.create(folder, {"name": "x"})
    names, directions = ["accuracy", "log10 cost"], ["maximize", "minimize"]
    proposer = Proposer(study, "x", search.sampler, search.seed, directions, names)  # type: ignore[arg-type]
    driver = Driver(study, open_space(source), search, proposer, OBJECTIVES, {})
    first = driver.ask()
    with (folder / "stalls").open("a") as stalls:
        stalls.write(f"{time.monotonic() - begun}\n")
    waiting = [first]
    try:
        Local(workers).run(lambda: waiting.pop() if waiting else driver.ask(), pretend, driver.tell)
    finally:
        driver.leave()
        study.close()
    return driver.hopeless


@contextmanager
def driver_process(harm: Callable[[], None], *arguments: Any) -> Iterator[int]:
    """Run :func:`drive` in a process that is forked, so that none waits for torch to be imported."""
    import autocompress.engine.driver  # noqa: F401

    process = _forked()
    if not process:
        code = 1
        try:
            harm()
            drive(*arguments)
            code = 0
        finally:
            os._exit(code)
    yield process
    with suppress(ChildProcessError):
        os.waitpid(process, 0)


def _forked() -> int:
    with warnings.catch_warnings():
        # Of a process with threads: those of a test runner hold nothing that the child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def nothing() -> None:
    """Do no harm."""


def killing(point: str, count: int) -> Callable[[], None]:
    """Return what makes a process kill itself at the ``count``-th passage of a named point."""

    def harm() -> None:
        import importlib

        place, name, after = POINTS[point]
        owner: Any = importlib.import_module(f"autocompress.{place}")
        *outer, name = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        real, passages = getattr(owner, name), 0

        def harmed(*arguments: Any, **named: Any) -> Any:
            nonlocal passages
            passages += 1
            if passages == count and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = real(*arguments, **named)
            if passages == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(owner, name, harmed)

    return harm


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Return what the store holds."""
    if not (folder / "study.db").exists():
        return []
    connection = sqlite3.connect(folder / "study.db", timeout=30)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []  # Killed before its tables were there.
    finally:
        connection.close()


CANDIDATES = "SELECT id, config, scores, costs, checkpoint FROM ac_candidates"
TRAININGS = "SELECT number, state, config FROM ac_trials WHERE base IS NULL"


# -- the rows ---------------------------------------------------------------------------------


def killed_drivers(place: Path, kills: int = 41, trials: int = 30, points: Sequence[str] = tuple(POINTS)) -> Figure:
    """Row 1: a driver that is killed, at random instants and at named points."""
    draw = random.Random(0)
    done, searches = 0, 0
    lost = duplicated = running = processes = wrong = 0
    stalls: list[float] = []
    named = list(points)
    while done < kills + len(points):
        folder, searches = place / str(searches), searches + 1
        folder.mkdir()
        pretend = Pretend(folder / "log", 0.03)
        known: set[tuple[Any, ...]] = set()
        while done < kills + len(points):
            ended = {number for number, state, _ in rows(folder, TRAININGS) if state not in ("running", "paused")}
            if len(ended) == trials:
                break
            harm = killing(named.pop(0), draw.randint(1, 3)) if named else nothing
            with driver_process(harm, folder, trials, 2, pretend) as process:
                if harm is nothing:
                    time.sleep(draw.uniform(0.02, 0.9))
                    os.kill(process, signal.SIGKILL)
            done += 1
            now = set(rows(folder, CANDIDATES))
            lost, known = lost + len(known - now), now
        with driver_process(nothing, folder, trials, 2, pretend):
            pass
        lost += len(known - set(rows(folder, CANDIDATES)))
        trainings = rows(folder, TRAININGS)
        running += sum(state == "running" for _, state, _ in trainings)
        wrong += abs(len(trainings) - trials)
        keys = [_unseeded(config) for _, _, config in trainings]
        duplicated += len(keys) - len(set(keys))
        # The first is no restart: it makes the store.
        stalls += [float(line) for line in (folder / "stalls").read_text().split()][1:]
        time.sleep(0.5)
        processes += len(pretend.alive())
    found = (
        f"{done} kills in {searches} searches: {lost} lost, {duplicated} duplicated, {running} left running, "
        f"{wrong} trials too many or too few, {processes} processes left; restart stall at most {max(stalls):.2f} s"
    )
    held = not (lost or duplicated or running or processes or wrong) and max(stalls) <= 2
    return Figure("0 lost, 0 duplicated, 0 left running, exactly N trials, stall <= 2 s", found, held)


def _unseeded(config: str) -> str:
    import json

    return json.dumps({key: value for key, value in json.loads(config).items() if key != "seed"}, sort_keys=True)


def killed_workers(place: Path, trials: int = 60, killed: int = 20) -> Figure:
    """Row 2: workers that are killed, and a configuration that kills its worker every time."""
    draw = random.Random(1)
    faults = dict.fromkeys(draw.sample(range(1, trials), killed), "kill once") | {0: "kill"}
    pretend = Pretend(place / "log", 0.0, faults)
    drive(place, trials, 2, pretend, "search.promotion=always")
    trainings = rows(place, "SELECT number, state, reason FROM ac_trials")
    failed = [number for number, state, _ in trainings if state == "failed"]
    executions = pretend.executions()
    most = max(executions.count(each) for each in executions)
    found = f"{len(trainings)} of {trials} accounted for, failed: {failed}, at most {most} executions each"
    return Figure(
        "all accounted for, at most 2 executions each", found, (len(trainings), failed, most) == (trials, [0], 2)
    )


def out_of_memory(place: Path, trials: int = 20) -> Figure:
    """Row 3: trials that want more memory than a worker may take."""
    from autocompress.backends.base import TrialLimits
    from autocompress.backends.local import Local

    pretend = Pretend(place / "log", 0.0, {3: "hoard", 4: "hoard", 11: "hoard"})
    told = _run(Local(2, TrialLimits(memory=2 << 30)), pretend, trials)
    reasons = {number: result.reason for number, result in told.items() if result.state.value == "failed"}
    starts = sum(line.startswith("worker") for line in pretend.log.read_text().splitlines())
    found = f"{len(told)} of {trials} told; failed: {reasons}; {starts} workers were started"
    held = len(told) == trials and reasons == dict.fromkeys((3, 4, 11), "out of memory") and starts == 2
    return Figure('failed as "out of memory", the search goes on', found, held)


def hung_trials(place: Path, limit: float = 3.0) -> Figure:
    """Row 4: trials that hang, ignore SIGTERM, and have started a process."""
    from autocompress.backends.base import TrialLimits
    from autocompress.backends.local import Local

    pretend = Pretend(place / "log", 0.0, {1: "hang", 2: "hang"})
    told = _run(Local(2, TrialLimits(seconds=limit)), pretend, 8)
    late = max(told[number].seconds for number in (1, 2)) - limit
    left = len(pretend.alive())
    found = f"{told[1].reason}; {late:.2f} s late, {left} processes left, {len(told)} of 8 told"
    return Figure("timed out within limit + 3 s, no orphan", found, 0 <= late <= 3 and not left and len(told) == 8)


def _run(backend: Any, pretend: Pretend, count: int) -> dict[int, Any]:
    from autocompress.config import CompressionConfig, Part
    from autocompress.records import Cut, Job

    part = Part("adamw")
    queue = [
        Job(n, CompressionConfig(Part.of("cnn", width=n + 1), (Part("none"),), part, seed=n), (Cut(),))
        for n in range(count)
    ]
    told: dict[int, Any] = {}
    backend.run(lambda: queue.pop(0) if queue else None, pretend, lambda job, result: told.update({job.number: result}))
    return told


def interrupted(place: Path) -> Figure:
    """Row 5: Ctrl-C once and twice, and SIGTERM, on the command line with real trainings; then the run goes on."""
    small = ["search.trials=6", "search.workers=2", "fit.adamw.epochs=12", "teacher.fit={adamw: {epochs: 12}}"]
    small += ["teacher.student={cnn: {width: 12, depth: 1}}"]
    words = [sys.executable, "-m", "autocompress.cli", "search", "digits", "--runs", str(place), "--resume"]
    words += [word for setting in small for word in ("--set", setting)]
    found, held, before = [], True, 0
    for signals in ([signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM], []):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while signals and process.poll() is None and len(rows(place / "digits", CANDIDATES)) <= before:
            time.sleep(0.05)
        sent = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        process.communicate()
        took = time.monotonic() - sent
        before = len(rows(place / "digits", CANDIDATES))
        page = (place / "digits" / "report.html").exists()
        name = " + ".join(number.name for number in signals) or "resumed"
        found.append(f"{name}: exit {process.returncode}" + (f" after {took:.1f} s" if signals else ""))
        held &= page and process.returncode == (128 + signals[0] if signals else 0)
    left = rows(place / "digits", "SELECT count(*) FROM ac_trials WHERE state IN ('running', 'failed')")[0][0]
    found.append(f"{left} trials running or failed")
    return Figure("exit 130 / 143, page written, resumable", "; ".join(found), held and not left)


def second_driver(place: Path) -> Figure:
    """Row 6: a second driver on the same folder."""
    from autocompress.engine.earlier import look
    from autocompress.engine.spec import parse_spec
    from autocompress.errors import RunFolderError

    said, took = "not refused", 0.0
    with driver_process(nothing, place, 1000, 1, Pretend(place / "log", 0.2)) as process:
        while not rows(place, TRAININGS):
            time.sleep(0.05)
        begun = time.monotonic()
        try:
            look(place, parse_spec(SPEC, "x").spec, resume=True)
        except RunFolderError as refusal:
            said, took = str(refusal).replace(str(place), "FOLDER"), time.monotonic() - begun
        os.kill(process, signal.SIGKILL)
    held = f"in use by process {process}" in said and took <= 1
    return Figure("refused in 1 s, naming the process", f"after {took:.3f} s: {said.replace(str(process), 'N')}", held)


def damaged_store(place: Path, cuts: int = 20, flips: int = 200) -> Figure:
    """Row 7: a store whose tail is cut off, and one with flipped bytes."""
    from autocompress.errors import AutocompressError
    from autocompress.study import DATABASE, Study

    def content(folder: Path) -> list[Any]:
        with Study.read(folder) as study:
            return [study.candidates().to_csv(), study.trials().to_csv(), study.all_meta(), list(study.notes())]

    drive(place, 20, 1, Pretend(place / "log", 0.0))
    intact = (place / DATABASE).read_bytes()
    expected = content(place)
    draw = random.Random(0)
    harmed = [intact[: draw.randrange(len(intact))] for _ in range(cuts)]
    for _ in range(flips):
        where = draw.randrange(len(intact))
        harmed.append(intact[:where] + bytes([intact[where] ^ (1 << draw.randrange(8))]) + intact[where + 1 :])
    counts = {"refused with what to do": 0, "read as it was": 0, "silently wrong": 0, "crashed": 0}
    for number, data in enumerate(harmed):
        folder = place / str(number)
        folder.mkdir()
        (folder / DATABASE).write_bytes(data)
        try:
            found = "read as it was" if content(folder) == expected else "silently wrong"
        except AutocompressError as refusal:
            says = any(word in str(refusal) for word in ("recover", "start anew", "point at"))
            found = "refused with what to do" if says else "crashed"
        except Exception:
            found = "crashed"
        counts[found] += 1
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    held = not counts["silently wrong"] and not counts["crashed"]
    return Figure("no silent wrong value", f"{cuts} cut, {flips} flipped: {told}", held)


def full_disk(place: Path) -> Figure:
    """Row 8: no space left, as a limit on the size of files shows it."""
    import resource

    from autocompress.errors import StorageError
    from autocompress.study import Study

    def harm() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    process = _forked()
    if not process:
        code = 1
        try:
            harm()
            drive(place, 500, 1, Pretend(place / "log", 0.0), "search.sampler=random")
        except StorageError as fault:
            (place.parent / "said").write_text(str(fault))
            code = fault.exit_code
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with Study.read(place) as study:
        trials = len(study.trials())
    said = (place.parent / "said").read_text().replace(str(place), "FOLDER") if code == 3 else "nothing"
    found = f"exit {code}, {trials} trials readable, it said: {said}"
    return Figure("clean stop, exit 3, store readable", found, code == 3 and trials > 0 and "space" in said)


def bad_results(place: Path, tables: int = 500) -> Figure:
    """Row 9: results that are no numbers, and the front against brute force."""
    import numpy as np

    from autocompress.config import CompressionConfig, Part
    from autocompress.engine.results import checked
    from autocompress.front import dominated
    from autocompress.records import Cut, Job

    job = Job(0, CompressionConfig(Part.of("cnn", width=8), (Part("none"),), Part("adamw")), (Cut(),))
    result = outcome(job)
    (good,) = result.candidates
    bad: list[Any] = [float("nan"), float("inf"), float("-inf"), None, "0.9", [0.9]]
    harmed = []
    for value in bad:
        harmed.append(replace(good, scores={**good.scores, "search_val": {"accuracy": value}}))
        harmed.append(replace(good, scores={**good.scores, "select_val": {"accuracy": value}}))
        harmed.append(replace(good, costs={"effective_flops": value}))
        harmed.append(replace(good, costs={}, scores={"search_val": {"loss": value}}))
    names = [str(objective["name"]) for objective in OBJECTIVES]
    failed = sum(
        found.state.value == "failed" and bool(found.reason)
        for each in harmed
        for found in [checked(replace(result, candidates=(each,)), names)]
    )
    draw = np.random.default_rng(0)
    equal = 0
    for _ in range(tables):
        # Few values, so that there are ties and duplicates.
        points = draw.integers(0, 6, size=(draw.integers(1, 40), 2)).astype(float)
        brute = [any((q <= p).all() and (q < p).any() for q in points) for p in points]
        equal += dominated(points, ["minimize", "minimize"]).tolist() == brute
    found = f"{failed} of {len(harmed)} failed with a reason; front equal on {equal} of {tables} tables"
    return Figure(
        "all failed with the reason; front equals brute force", found, (failed, equal) == (len(harmed), tables)
    )


def hopeless(place: Path) -> Figure:
    """Row 15: every trial fails."""
    pretend = Pretend(place / "log", 0.0, dict.fromkeys(range(100), "raise"))
    given_up = drive(place, 100, 2, pretend)
    reasons = rows(place, "SELECT DISTINCT reason FROM ac_trials WHERE state = 'failed'")
    trials = len(rows(place, TRAININGS))
    held = given_up and 10 <= trials <= 11 and reasons == [("RuntimeError: this trial is there to fail",)]
    return Figure("stop after 10 (and what was under way)", f"stopped after {trials}; reasons: {reasons}", held)


def run_again(place: Path, trials: int = 10) -> Figure:
    """Row 20: real trials run once more from their records."""
    import autocompress
    from autocompress.lab import Setup
    from autocompress.records import Role, State
    from autocompress.study import Study
    from autocompress.trial import TrialRunner

    small = [f"search.trials={trials}", "search.backend=serial", "search.promotion=always", "search.refine=0"]
    small += ["fit.adamw.epochs=3", "student.cnn.width=[6, 8, 12]", "teacher.fit={adamw: {epochs: 8}}"]
    small += ["teacher.student={cnn: {width: 12, depth: 1}}"]
    folder = autocompress.search("digits", runs=place, overrides=small).folder
    same = whole = 0
    with Study.read(folder) as study:
        runner = TrialRunner(Setup.from_json(study.meta("setup")))
        for stored in study.stored_trials():
            if stored.job.role is not Role.SEARCH or stored.state is not State.COMPLETE:
                continue
            whole += 1
            again = runner(stored.job)
            weights = {name: study.checkpoint_path(name).read_bytes() for name in again.checkpoints}
            same += weights == dict(again.checkpoints) and [
                (each.id, {name: each.scores[name] for name in ("search_val", "select_val")}, each.costs)
                for each in study.candidates_of(stored.job.number)
            ] == [(each.id, each.scores, each.costs) for each in again.candidates]
    found = f"{same} of {whole} identical, weights and metrics"
    return Figure("identical weights and metrics", found, same == whole == trials)


def same_table(place: Path, trials: int = 30, kills: int = 5) -> Figure:
    """Row 21: a search in one go and one that is killed and resumed, with one worker."""
    from autocompress.study import Study

    def table(folder: Path) -> str:
        with Study.read(folder) as study:
            return str(study.candidates().to_csv())

    for name in ("whole", "killed"):
        (place / name).mkdir()
    with driver_process(nothing, place / "whole", trials, 1, Pretend(place / "whole" / "log", 0.0)):
        pass
    points = [point for point in POINTS if "job" in point or "result" in point][:kills]
    for point in points:
        harm = killing(point, 12 if "rows of" in point else 6)
        with driver_process(harm, place / "killed", trials, 1, Pretend(place / "killed" / "log", 0.0)):
            pass
    left = trials - len(rows(place / "killed", TRAININGS))
    with driver_process(nothing, place / "killed", trials, 1, Pretend(place / "killed" / "log", 0.0)):
        pass
    same = table(place / "whole") == table(place / "killed")
    found = f"killed {len(points)} times, {left} trainings to go after the last: " + ("equal" if same else "different")
    return Figure("the same table", found, same)


def many_trials(place: Path, trials: int = 2000) -> Figure:
    """Row 23: memory and time of the driver over many trials, proposed at random: TPE's own time is in growth."""
    import gc

    from autocompress.engine.driver import Driver
    from autocompress.engine.sampler import Proposer
    from autocompress.engine.space import open_space
    from autocompress.engine.spec import parse_spec
    from autocompress.study import Study

    source = parse_spec(SPEC, "x", [f"search.trials={trials}", "search.sampler=random"])
    study = Study.create(place, {"name": "x"})
    proposer = Proposer(study, "x", "random", 0, ["maximize", "minimize"], ["accuracy", "cost"])
    driver = Driver(study, open_space(source), source.spec.search, proposer, OBJECTIVES, {})
    begun, tells, at_first, at_last = 0, [], 0, 0
    while (job := driver.ask()) is not None:
        begun += job.base is None and not job.rung
        if begun == trials // 4 and not at_first:
            gc.collect()
            at_first = _resident()
        if begun == trials and not at_last:
            # Before the search ends: what is written then, once, imports another library.
            gc.collect()
            at_last = _resident()
        started = time.perf_counter()
        driver.tell(job, outcome(job))
        tells.append(time.perf_counter() - started)
    each = (at_last - at_first) / (begun - trials // 4)
    study.close()
    last = sorted(tells[-50:])[25] * 1e3
    found = f"{begun} trainings: {each / 1024:.1f} KiB a trial, tell {last:.1f} ms at the end (median of 50)"
    return Figure("below 5 KB a trial, tell below 50 ms", found, each < 5000 and last < 50)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def checkpoints(place: Path, trials: int = 500) -> Figure:
    """Row 24: files after many trials."""
    pretend = Pretend(place / "log", 0.0)
    drive(place, trials, 2, pretend, "search.sampler=random")
    named = {name for (name,) in rows(place, "SELECT DISTINCT checkpoint FROM ac_candidates WHERE checkpoint != ''")}
    there = {path.stem for path in (place / "checkpoints").iterdir()}
    paused = len(list((place / "paused").iterdir()))
    ended = len([state for _, state, _ in rows(place, TRAININGS) if state == "complete"])
    found = f"{trials} trainings, {ended} to their end: {len(there)} files of weights, {paused} of paused trainings"
    return Figure("files of what is kept, and no others", found, there == named and not paused and len(there) == ended)


ROWS: dict[int, Callable[[Path], Figure]] = {
    1: killed_drivers,
    2: killed_workers,
    3: out_of_memory,
    4: hung_trials,
    5: interrupted,
    6: second_driver,
    7: damaged_store,
    8: full_disk,
    9: bad_results,
    15: hopeless,
    20: run_again,
    21: same_table,
    23: many_trials,
    24: checkpoints,
}


def main() -> None:
    """Print one line a row, and write the table."""
    from benchmarks.keeping import about

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/faults.md"))
    asked = parser.parse_args()
    lines = ["# What must hold whatever goes wrong", "", about(__doc__), ""]
    lines += ["`python -m benchmarks.faults`", "", "| row | harm | what must hold | measured | held | seconds |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in asked.rows:
        begun = time.monotonic()
        with TemporaryDirectory() as folder:
            place = Path(folder) / "run"
            place.mkdir()
            figure = ROWS[row](place)
        harm = (ROWS[row].__doc__ or "").partition(": ")[2].rstrip(".")
        took = time.monotonic() - begun
        held = "yes" if figure.held else "**no**"
        lines.append(f"| {row} | {harm} | {figure.wanted} | {figure.found} | {held} | {took:.0f} |")
        print(lines[-1], flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
