"""The file of one point and one shard: the logits of every clip.

Axes: n clips, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from vidflow.npz import read_npz
from vidflow.store.digests import check_once
from vidflow.store.layout import damage, publish

_LOGITS = "logits."


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLogits:
    """What a model said of the clips of a shard.

    Attributes:
        keys: Content keys of the clips, as numbers.
        labels: Number of each clip's label among the sorted labels of the manifest; -1 for none.
        logits: Logits by head; empty if there is no clip.
    """

    keys: UInt64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    logits: Mapping[str, Float32[np.ndarray, "n K"]]


def write_logits(path: Path, shard: ShardLogits) -> None:
    """Publish the file."""
    arrays = {f"{_LOGITS}{head}": values for head, values in shard.logits.items()}
    with publish(path) as aside, aside.open("wb") as file:
        np.savez(file, allow_pickle=False, keys=shard.keys, labels=shard.labels, **arrays)


def read_logits(path: Path, sha256: str) -> ShardLogits:
    """Read the file after comparing its bytes with their digest.

    Raises:
        DamagedError: If they differ.
    """
    check_once(path, sha256)
    try:
        arrays = read_npz(path, lambda _: True)
    except (OSError, ValueError) as error:
        raise damage(path, str(error)) from error
    logits = {name.removeprefix(_LOGITS): values for name, values in arrays.items() if name.startswith(_LOGITS)}
    return ShardLogits(keys=arrays["keys"], labels=arrays["labels"], logits=logits)


def key_number(key: str) -> int:
    """Return a content key of 16 hex digits as a number."""
    return int(key, 16)


__all__ = ["ShardLogits", "key_number", "read_logits", "write_logits"]
