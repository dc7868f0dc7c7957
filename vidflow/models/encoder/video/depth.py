"""Run the library's own model with its first blocks only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def first_blocks(module: Any, name: str, depth: int) -> Iterator[None]:
    """Let the list of blocks `name` of a module hold its first `depth` blocks for a while."""
    blocks = getattr(module, name)
    setattr(module, name, nn.ModuleList(blocks[:depth]))
    try:
        yield
    finally:
        setattr(module, name, blocks)


__all__ = ["first_blocks"]
