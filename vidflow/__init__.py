"""Frozen image encoders, cached token features and small recurrent cores for video.

The names below are imported on first use, so that `import vidflow` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidflow.dataset import EpochSampler, FeatureDataset, collate_clips
    from vidflow.loading import load
    from vidflow.store.features import FeatureReader

__version__ = "0.1.0"
__all__ = ["EpochSampler", "FeatureDataset", "FeatureReader", "collate_clips", "load"]

_HOMES = {
    "EpochSampler": "dataset",
    "FeatureDataset": "dataset",
    "FeatureReader": "store.features",
    "collate_clips": "dataset",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names, for completion in notebooks."""
    return [*__all__, "__version__"]
