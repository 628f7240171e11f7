"""The tasks of the benchmarks of methods, each with a small student and the length of its training."""

from pathlib import Path

from autocompress.core.config import Part
from autocompress.engine.spec import load_spec
from benchmarks.variants import BenchmarkTask

# Every student has 20 times fewer parameters than its teacher, or fewer still.
DIGITS = BenchmarkTask(
    "digits",
    Part("digits"),
    Part.of("cnn", width=8, depth=1, stages=2, block="plain"),
    Part.of("adamw", epochs=20, learning_rate=1e-2),
)
MNIST1D = BenchmarkTask(
    "mnist1d",
    Part("mnist1d"),
    Part.of("cnn1d", width=8, depth=1, stages=3, block="plain"),
    Part.of("adamw", epochs=15, learning_rate=1e-2),
)
RATINGS = BenchmarkTask(
    "ratings",
    Part("ratings"),
    Part.of("two_tower", embedding=8, width=32, depth=0, tower=16),
    Part.of("adamw", epochs=8, learning_rate=1e-2, weight_decay=0.5, batch_size=256),
    temperatures=(1.0, 3.0),
    metric="rmse",
)
RANKING = BenchmarkTask(
    "ranking",
    Part("ranking"),
    Part.of("two_tower", embedding=16, depth=0, tower=16),
    Part.of("adamw", epochs=3, learning_rate=2e-2, weight_decay=6e-2, batch_size=256),
    (
        Part.of("two_tower", embedding=64, depth=0, tower=64),
        Part.of("adamw", epochs=5, learning_rate=1.5e-2, weight_decay=8e-2, batch_size=256),
    ),
    temperatures=(2.0,),
    metric="ndcg_at_10",
)
LANGID = BenchmarkTask(
    "langid",
    Part.of("langid", views=2),
    Part.of("text_cnn", embedding=12, width=24, depth=1, kernel=3, block="residual", pooling="max"),
    Part.of("adamw", epochs=3, learning_rate=1e-2, batch_size=128),
    (
        Part.of("text_cnn", embedding=32, width=128, depth=1, block="parallel"),
        Part.of("adamw", epochs=5, learning_rate=4e-3, batch_size=128),
    ),
    temperatures=(1.0, 10.0),
)


def build_reviews(path: Path) -> BenchmarkTask:
    """Return the task of the shipped space `reviews` with two augmented views and a small student."""
    options = load_spec("reviews", [f"task.text.path={path}"]).spec.task["text"]
    labels = ", ".join(options["labels"])
    return BenchmarkTask(
        "reviews",
        Part.of("text", path=str(path), text=options["text"], labels=labels, encoding=options["encoding"], views=2),
        Part.of("text_cnn", embedding=8, width=16, depth=1, kernel=3, block="residual", pooling="max"),
        Part.of("adamw", epochs=4, learning_rate=8e-3, batch_size=64),
        temperatures=(1.0, 3.0, 10.0),
    )


def build_cifar10(folder: Path, limit: int) -> BenchmarkTask:
    """Return CIFAR-10 with ``limit`` training images per class, a teacher of width 16, a student of width 8."""
    return BenchmarkTask(
        "cifar10",
        Part.of("images", path=str(folder), limit=limit, views=8),
        Part.of("cnn", width=8, depth=1, stages=3, block="plain"),
        Part.of("adamw", epochs=15, learning_rate=1e-2, batch_size=64, precision="bfloat16"),
        (
            Part.of("cnn", width=16, depth=2, stages=3, block="residual"),
            Part.of("adamw", epochs=25, learning_rate=4e-3, batch_size=64, precision="auto"),
        ),
        epsilon=0.1,
        temperatures=(),
    )
