"""Confidence cascades of a run's candidates: threshold and pair chosen on select_val, the chosen one scored on test."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.analysis.cascade import (
    CASCADE,
    CONFIDENT_KINDS,
    CascadePoint,
    CascadeSearch,
    CascadeTest,
    ScoredModel,
    SingleModel,
    combine_outputs,
    compute_confidence,
    find_front,
    list_cascades,
    select_cascade,
)
from autocompress.analysis.pareto import full_fidelity, numeric_column, primary_objectives
from autocompress.analysis.selection import select_deployable
from autocompress.core.atomic import require_writable, write_atomic
from autocompress.core.example_scores import ExampleScores
from autocompress.core.heads import as_head
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.core.task import Split
from autocompress.core.untrusted import join_inside
from autocompress.errors import NoCandidateError, TrialError, UsageError
from autocompress.export.candidate import rebuild_candidate
from autocompress.measure import Subject, measure
from autocompress.measure.example_scores import pack_examples
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import TrialPipeline, reproducible_torch

# Costs of two models that run one after the other add up.
ADDITIVE = ("effective_flops", "bops", "flops", "latency_ms")

logger = logging.getLogger(__name__)

Outputs = Mapping[str, NDArray[np.floating]]


def search_cascades(run: Path, identities: Sequence[str], on_progress: Callable[[int, int], None]) -> CascadeSearch:
    """Compare the cascades of a run's candidates with the candidates, and write ``cascade.json`` in the run folder.

    Pairs and thresholds are chosen on select_val. The test split is read once more, for the chosen cascade and the best
    candidate of equal expected cost.

    Args:
        run: The run folder.
        identities: Ids of the candidates.
        on_progress: Callback with the number of rebuilt candidates and of all.

    Raises:
        UsageError: The search has not ended, the score cannot be computed from outputs, or a head has no confidence.
        NoCandidateError: There are fewer than two candidates.
        VerificationError: A rebuilt candidate does not have its stored scores.
        StorageError: The run folder cannot be written.
    """
    with RunStore.read(run) as store:
        info = store.run_info()
        table = store.candidate_table()
    if not info.is_finished:
        raise UsageError(f"{run}: the search has not ended; a cascade is made from the candidates of its front")
    if len(set(identities)) < 2:
        raise NoCandidateError(f"{run}: a cascade needs two candidates, and there are {len(identities)}")
    require_writable(run)
    cost, score = _select_objectives(info)
    with reproducible_torch():
        candidates: dict[str, _DecidedModel] = {}
        for identity in identities:
            on_progress(len(candidates), len(identities))
            rebuilt = rebuild_candidate(run, identity)
            candidates[identity] = _DecidedModel(rebuilt.models.model, rebuilt.deployable.heads)
        # All candidates of a run have the same task and splits.
        session = _Session(
            run, rebuilt.pipeline, score, candidates, _list_singles(table, identities, info, cost, score)
        )
        search = session.search(info, cost)
    # Another command may have written since: only the count changes.
    with RunStore.open(run) as store:
        current = store.run_info()
        reads = current.test_reads + (search.test is not None)
        store.update_run_info(replace(current, test_reads=reads))
    write_atomic(join_inside(run, CASCADE), search.to_json())
    return search


def _select_objectives(info: RunInfo) -> tuple[str, ObjectiveSpec]:
    cost, score = primary_objectives(info.objectives)
    # Bytes and parameters of two models are no expected values; every run has effective FLOPs.
    return cost.name if cost.name in ADDITIVE else ADDITIVE[0], score


def _list_singles(
    table: pd.DataFrame, identities: Sequence[str], info: RunInfo, cost: str, score: ObjectiveSpec
) -> dict[str, SingleModel]:
    """Return the candidates to compare with, by id: all that are complete, and those that the cascades are made of."""
    rows = full_fidelity(table)
    # Simulated candidates have the costs of other hardware; without any other, they are compared with themselves.
    with suppress(NoCandidateError):
        rows = select_deployable(rows, info)
    # A baseline or a simulated candidate takes part if it is named.
    rows = table[table["id"].isin({*rows["id"], *identities})]
    columns = rows["id"].astype(str), numeric_column(rows, cost), numeric_column(rows, score.name)
    return {name: SingleModel(name, own, value) for name, own, value in zip(*columns, strict=True)}


@dataclass(frozen=True)
class _DecidedModel:
    """A rebuilt candidate.

    Attributes:
        model: Its model.
        heads: Heads of the task with the thresholds of the candidate.
    """

    model: nn.Module
    heads: Mapping[str, int]


@dataclass(frozen=True)
class _Session:
    """Candidates of one run and their score.

    Attributes:
        run: The run folder.
        pipeline: Task and splits of the run.
        score: First score of the objectives.
        candidates: Id to the rebuilt candidate.
        singles: Id to each single candidate to compare with.
    """

    run: Path
    pipeline: TrialPipeline
    score: ObjectiveSpec
    candidates: dict[str, _DecidedModel]
    singles: Mapping[str, SingleModel]

    def search(self, info: RunInfo, cost: str) -> CascadeSearch:
        """Return the cascades, the recommended one with its scores on test."""
        self._check_heads()
        split, is_maximized = self.pipeline.splits.select_val, self.score.is_maximized
        models = [self._score_model(identity, split) for identity in self.candidates]
        points = list_cascades(models, lambda outputs: self._measure(outputs, split))
        singles = tuple(self.singles.values())
        picked = self.singles.get(info.recommended)
        selected = select_cascade(points, singles, is_maximized, None if picked is None else picked.score)
        front = find_front(points, singles, is_maximized)
        search = CascadeSearch(info.name, self.score.name, self.score.direction, cost, front)
        if selected is None:
            return search
        point, single = selected
        return replace(search, recommended=point, single=single, test=self._test(point, single.id))

    def _check_heads(self) -> None:
        for name, size in self.pipeline.task.heads.items():
            if (kind := as_head(size).kind) not in CONFIDENT_KINDS:
                raise UsageError(f"the head '{name}' of the kind {kind} has no confidence: a cascade needs classes")

    def _score_model(self, identity: str, split: Split) -> ScoredModel:
        candidate = self.candidates[identity]
        logits = self.pipeline.predict(candidate.model, split)
        raw = {head: values.numpy() for head, values in logits.items()}
        # Models of different thresholds answer the examples of one cascade, so scores read outputs without thresholds.
        outputs = {
            head: as_head(candidate.heads[head]).shift_outputs(values).numpy() for head, values in logits.items()
        }
        kinds = {head: as_head(size).kind for head, size in self.pipeline.task.heads.items()}
        return ScoredModel(
            identity,
            self.singles[identity].cost,
            self._measure(outputs, split),
            outputs,
            # As the service computes it: from the outputs of the file.
            compute_confidence(raw, kinds),
        )

    def _build_subject(self, outputs: Outputs, split: Split) -> Subject:
        task = self.pipeline.task
        return Subject(
            {head: torch.from_numpy(values) for head, values in outputs.items()},
            split.targets,
            heads=task.heads,
            labels=task.labels,
            groups=task.resampling_groups(split),
        )

    def _measure(self, outputs: Outputs, split: Split) -> float:
        name = self.score.name
        try:
            return measure(self._build_subject(outputs, split), [name])[name]
        except TrialError as error:
            raise UsageError(f"the score '{name}' needs more than outputs and targets ({error})") from error

    def _test(self, point: CascadePoint, single: str) -> CascadeTest:
        """Return the scores of a cascade and of the best single candidate of equal cost on the test split."""
        split = self.pipeline.splits.test
        if single not in self.candidates:
            rebuilt = rebuild_candidate(self.run, single)
            self.candidates[single] = _DecidedModel(rebuilt.models.model, rebuilt.deployable.heads)
        models = {name: self._score_model(name, split) for name in {point.small, point.large, single}}
        small, large = models[point.small], models[point.large]
        outputs, share = combine_outputs(small, large, point.threshold)
        score = self._measure(outputs, split)
        error = self._estimate_error(outputs, models[single].outputs, split)
        return CascadeTest(
            score, models[single].score, score - models[single].score, error, share, small.cost + share * large.cost
        )

    def _estimate_error(self, outputs: Outputs, others: Outputs, split: Split) -> float:
        """Return the standard error of the difference of two scores, over the same examples or bootstrap draws."""
        texts = (pack_examples(self._build_subject(values, split), self.score.name) for values in (outputs, others))
        first, second = (ExampleScores.unpack(text) for text in texts)
        # Only texts of a later version are not read.
        assert first is not None
        assert second is not None
        if first.kind == "replicates" or second.kind == "replicates":
            return float((first.values - second.values).std(ddof=1))
        return float((first.values - second.values).std(ddof=1) / np.sqrt(first.examples))
