"""Frozen encoders, token reduction, temporal cores, readouts and tasks.

The names below are imported on first use: importing torch and timm takes seconds, and a command that only looks at
files should not wait for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidflow.models.checkpoints import export_released, load_released, load_rvm
    from vidflow.models.cores.build import build_core
    from vidflow.models.encoder import build_encoder
    from vidflow.models.streaming import StreamingModel
    from vidflow.models.tasks import TaskOptions, build_metric, build_task

__all__ = [
    "StreamingModel",
    "TaskOptions",
    "build_core",
    "build_encoder",
    "build_metric",
    "build_task",
    "export_released",
    "load_released",
    "load_rvm",
]

_HOMES = {
    "StreamingModel": "streaming",
    "TaskOptions": "tasks",
    "build_core": "cores.build",
    "build_encoder": "encoder",
    "build_metric": "tasks",
    "build_task": "tasks",
    "export_released": "checkpoints",
    "load_released": "checkpoints",
    "load_rvm": "checkpoints",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
