"""Where an experiment's files are on this node: on a disk, or mirrored from an object store."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vidflow.config.schema import Config
from vidflow.objects import CACHE_LIMIT, is_mirror, split_mirror, to_path

Built = TypeVar("Built")


def root_path(config: Config) -> Path:
    """Return the folder of an experiment; for a root in an object store its mirror in this node's cache."""
    return place_path(config, config.root)


def place_path(config: Config, place: str) -> Path:
    """Return the path of a file or folder that the config names, which may be in an object store."""
    return to_path(place, config.resources.cache)


def disk_folder(root: Path) -> Path:
    """Return a folder on a disk for what is temporary: the root; for one in an object store this node's cache."""
    return split_mirror(root)[0] if is_mirror(root) else root


def bound_cache(config: Config) -> None:
    """Tell this process, and those that it starts, how large the node's cache may become."""
    os.environ[CACHE_LIMIT] = str(config.resources.cache_gib)


def build_bounded(config: Config, build: Callable[..., Built], **arguments: Any) -> Built:
    """Build a worker on a node whose cache is bounded."""
    bound_cache(config)
    return build(**arguments)


__all__ = ["bound_cache", "build_bounded", "disk_folder", "place_path", "root_path"]
