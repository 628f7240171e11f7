"""AutoML compression search: a search space goes in, a Pareto front of deployable, verified models comes out.

>>> import autocompress
>>> front = autocompress.search("digits", trials=40)  # doctest: +SKIP
>>> front.pick(max={"effective_flops": 2e6}).reason  # doctest: +SKIP
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.analysis.selection import Pick
    from autocompress.api import adapt, load, search
    from autocompress.core.config import CompressionConfig, Part
    from autocompress.core.knobs import Choice, FloatRange, IntRange, Settings, knob
    from autocompress.core.registry import load_plugin
    from autocompress.errors import AutocompressError
    from autocompress.export.adaptation import AdaptedArtifact
    from autocompress.export.artifact import expand_artifact, load_artifact
    from autocompress.export.switchable import join_artifacts, load_switchable
    from autocompress.front import Front
    from autocompress.tasks.images_folder import Images
    from autocompress.tasks.module import bring_model
    from autocompress.tasks.pretrained import from_pretrained
    from autocompress.tasks.tabular import Tabular
    from autocompress.tasks.tensors import Tensors

__version__ = "0.1.0"

# Libraries that would queue or send usage data read these when they are imported: onnxruntime writes a device id and
# queued events to the user's cache folder, the others ask a server. This module runs before every import of them in the
# package, and worker processes inherit the environment.
for _name, _value in (
    ("ORT_DISABLE_TELEMETRY", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
):
    os.environ.setdefault(_name, _value)

# Name to module: nothing is imported before it is asked for, so `import autocompress` loads neither torch nor pandas.
_HOME = {
    "AdaptedArtifact": "export.adaptation",
    "AutocompressError": "errors",
    "Choice": "core.knobs",
    "CompressionConfig": "core.config",
    "FloatRange": "core.knobs",
    "Front": "front",
    "Images": "tasks.images_folder",
    "IntRange": "core.knobs",
    "Part": "core.config",
    "Pick": "analysis.selection",
    "Settings": "core.knobs",
    "Tabular": "tasks.tabular",
    "Tensors": "tasks.tensors",
    "adapt": "api",
    "bring_model": "tasks.module",
    "expand_artifact": "export.artifact",
    "from_pretrained": "tasks.pretrained",
    "join_artifacts": "export.switchable",
    "knob": "core.knobs",
    "load": "api",
    "load_artifact": "export.artifact",
    "load_plugin": "core.registry",
    "load_switchable": "export.switchable",
    "search": "api",
}

__all__ = [
    "AdaptedArtifact",
    "AutocompressError",
    "Choice",
    "CompressionConfig",
    "FloatRange",
    "Front",
    "Images",
    "IntRange",
    "Part",
    "Pick",
    "Settings",
    "Tabular",
    "Tensors",
    "__version__",
    "adapt",
    "bring_model",
    "expand_artifact",
    "from_pretrained",
    "join_artifacts",
    "knob",
    "load",
    "load_artifact",
    "load_plugin",
    "load_switchable",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'autocompress' has no attribute '{name}'")
    return getattr(import_module(f"autocompress.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
