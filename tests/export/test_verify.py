from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import autocompress
from autocompress.core.heads import Levels
from autocompress.core.task import Split, logits_by_head
from autocompress.errors import ArtifactError, VerificationError
from autocompress.export.artifact import Deployable, write_artifact
from autocompress.export.candidate import _compare_scores, export_candidate
from autocompress.export.folder import read_files, write_files
from autocompress.export.pipeline import load
from autocompress.export.verify import Metric, verify, verify_pipeline
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import Setup, load_pipeline
from tests.export.nets import deployable, splits, train

Promise = tuple[dict[str, float], dict[str, Tensor]]


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split]:
    return splits()


@pytest.fixture(scope="module")
def written(data: tuple[Split, Split], tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployable, Path]:
    """A network with two heads, of 8 bits, and its folder; not to be changed."""
    made = deployable("rows", train("rows", data[0]), data[0], weight_bits=8, activation_bits=8)
    return made, write_artifact(tmp_path_factory.mktemp("verify") / "t1c2", made, {})


@pytest.fixture(scope="module")
def promise(written: tuple[Deployable, Path], data: tuple[Split, Split]) -> Promise:
    with torch.inference_mode():
        logits = logits_by_head(written[0].model(*data[1].inputs), written[0].heads)
    predictions = {head: values.argmax(1) for head, values in logits.items()}
    scores = {head: float((found == data[1].targets[head]).double().mean()) for head, found in predictions.items()}
    return scores, predictions


@pytest.mark.slow
def test_a_faithful_export_passes_with_its_figures(
    written: tuple[Deployable, Path], data: tuple[Split, Split], promise: Promise
) -> None:
    made, folder = written
    found = verify(folder, data[1], made.heads, *promise)
    assert found.examples == len(data[1])
    assert found.expected == promise[0]
    for head in made.heads:
        assert found.scores[head] == pytest.approx(promise[0][head], abs=0.005)
        assert found.agreement[head] >= 0.99
        assert found.module_agreement[head] == 1.0
    assert promise[0]["label"] > 0.8
    first, second = str(found).splitlines()
    assert first.startswith(f"label: accuracy {found.scores['label']:.4f} (searched {promise[0]['label']:.4f})")
    assert second.startswith("even: ")


@pytest.mark.slow
def test_a_score_that_was_not_kept_is_refused_with_the_figures(
    written: tuple[Deployable, Path], data: tuple[Split, Split], promise: Promise
) -> None:
    made, folder = written
    for head in made.heads:
        better = promise[0] | {head: promise[0][head] + 0.006}
        with pytest.raises(VerificationError, match=rf"{head}: accuracy 0\.\d+ \(searched {better[head]:.4f}\)"):
            verify(folder, data[1], made.heads, better, promise[1])
        verify(folder, data[1], made.heads, better, promise[1], tolerance=0.02)


@pytest.mark.slow
def test_a_score_that_is_better_low_is_refused_when_it_is_higher(
    written: tuple[Deployable, Path], data: tuple[Split, Split], promise: Promise
) -> None:
    made, folder = written
    heads = {head: Levels(size, levels=tuple(map(float, range(size)))) for head, size in made.heads.items()}
    metric = Metric("rmse", heads)
    with torch.inference_mode():
        logits = logits_by_head(made.model(*data[1].inputs), made.heads)
    kept = metric.by_head(logits, data[1].targets)
    found = verify(folder, data[1], made.heads, kept, promise[1], metric=metric)
    assert found.metric == "rmse"
    assert found.scores == pytest.approx(kept, abs=0.005)
    assert str(found).startswith(f"label: rmse {found.scores['label']:.4f} (searched {kept['label']:.4f})")
    # Predictions are the promised ones in both cases: only the error tells.
    better = {head: value - 0.05 for head, value in kept.items()}
    with pytest.raises(VerificationError, match=r"label: rmse .*a loss of 0\.005 in rmse"):
        verify(folder, data[1], made.heads, better, promise[1], metric=metric)
    worse = {head: value + 0.05 for head, value in kept.items()}
    verify(folder, data[1], made.heads, worse, promise[1], metric=metric)


@pytest.mark.slow
def test_raw_input_gives_the_predictions_of_the_searched_model(
    written: tuple[Deployable, Path], data: tuple[Split, Split], promise: Promise
) -> None:
    examples, predictions = data[1].inputs[0].numpy(), promise[1]
    shares = verify_pipeline(written[1], list(examples), written[0].heads, predictions)
    assert min(shares.values()) >= 0.99
    # What a specification that does not fit the data does: other pixels, another order, another number of examples.
    with pytest.raises(VerificationError, match=r"from raw input, pipeline\.py predicts .* at least 99% are needed"):
        verify_pipeline(written[1], list(16 * examples), written[0].heads, predictions)
    with pytest.raises(VerificationError, match=r"label \d+\.\d+%.*Compare the task's specify_preprocessing"):
        verify_pipeline(written[1], list(examples[::-1]), written[0].heads, predictions)
    with pytest.raises(VerificationError, match=r"lists 7 raw test examples, but its test split has \d+"):
        verify_pipeline(written[1], list(examples[:7]), written[0].heads, predictions)
    with pytest.raises(VerificationError, match=r"refuses a raw test example .* example 0, input: .*shape"):
        verify_pipeline(written[1], [image[0] for image in examples], written[0].heads, predictions)


@pytest.mark.slow
def test_another_pipeline_is_never_run(
    written: tuple[Deployable, Path], data: tuple[Split, Split], promise: Promise, tmp_path: Path
) -> None:
    files = read_files(written[1])
    files["pipeline.py"] += b"# another version\n"
    write_files(tmp_path / "a", files, lambda _: None)
    with pytest.raises(ArtifactError, match=r"pipeline\.py is not that of this version"):
        verify_pipeline(tmp_path / "a", list(data[1].inputs[0].numpy()), written[0].heads, promise[1])


@pytest.mark.parametrize(("name", "lost"), [("accuracy", 0.1), ("loss", -0.1)])
def test_what_is_a_loss_depends_on_the_score(name: str, lost: float) -> None:
    assert Metric(name).loss_against(0.4, 0.5) == pytest.approx(lost)


@pytest.mark.slow
def test_an_export_is_held_to_the_first_score_of_its_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The predicted classes are kept while the predicted rating moves: the accuracy cannot tell, the error must."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    overrides = [
        "search.trials=1",
        "search.backend=serial",
        "teacher.student={two_tower: {embedding: 4, depth: 0, tower: 4}}",
        "teacher.fit={adamw: {epochs: 1, batch_size: 1024}}",
        "student={two_tower: {embedding: 4, depth: 0, tower: 4}}",
        "fit={adamw: {epochs: 1, batch_size: 1024}}",
        "distill=none",
        "prune=none",
        "quantize=none",
    ]
    front = autocompress.search("ratings", name="held", runs=tmp_path, overrides=overrides)
    (identity,) = front.to_pandas()["id"]
    exported = export_candidate(front.folder, identity)
    assert exported.verification is not None
    assert exported.verification.metric == "rmse"
    # Raw users, items and features give the same predictions.
    assert exported.verification.pipeline_agreement["rating"] >= 0.999
    served = load(exported.folder)
    unknown = {"user": "nobody", "item": "-1", "features": dict.fromkeys((f"view {at}" for at in range(6)), 0.0)}
    assert 1 <= served.predict(unknown)["rating"]["value"] <= 5
    assert exported.verification.scores["rating"] == pytest.approx(
        front.pick(candidate=identity).row["rmse_test"], abs=1e-4
    )

    with RunStore.read(front.folder) as study:
        place = load_pipeline(Setup.from_json(study.run_info().setup))
        candidate = study.read_candidate(identity)
        content = study.checkpoint_path(candidate.checkpoint).read_bytes()
    other = place.rebuild(candidate.config, content)
    with torch.no_grad():
        # Logits half as large predict the same classes and another mean.
        for parameter in other.model.heads.parameters():
            parameter.mul_(0.5)
    with pytest.raises(
        VerificationError, match=rf"{identity} has rmse \d\.\d+ on select_val here and \d\.\d+ in the store"
    ):
        _compare_scores(place, other, candidate)


def test_predictions_that_differ_are_refused_with_the_figures(
    written: tuple[Deployable, Path], data: tuple[Split, Split], promise: Promise
) -> None:
    made, folder = written
    others = {head: found.clone() for head, found in promise[1].items()}
    others["even"][: len(data[1]) // 50] ^= 1
    with pytest.raises(VerificationError, match=r"same prediction on 98\.\d+% \(onnx\), 98\.\d+% \(module\)"):
        verify(folder, data[1], made.heads, promise[0], others)
    verify(folder, data[1], made.heads, promise[0], others, agreement=0.95)


@pytest.mark.slow
def test_another_model_in_the_folder_is_noticed(data: tuple[Split, Split], promise: Promise, tmp_path: Path) -> None:
    made = deployable("rows", train("rows", data[0], epochs=1), data[0])
    folder = write_artifact(tmp_path / "other", replace(made, labels={}), {})
    with pytest.raises(VerificationError, match="does not behave as the searched model"):
        verify(folder, data[1], made.heads, *promise)


def test_an_empty_split_verifies_nothing(written: tuple[Deployable, Path], data: tuple[Split, Split]) -> None:
    with pytest.raises(VerificationError, match="empty"):
        verify(written[1], data[1].take(slice(0, 0)), written[0].heads, {}, {})


def test_a_folder_that_is_no_artifact_is_refused(data: tuple[Split, Split], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not an artifact"):
        verify(tmp_path, data[1], {"label": 10}, {"label": 1.0}, {"label": data[1].targets["label"]})
