"""Split videos into those for training and those for validation, where their source does not."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vidflow.errors import ConfigError
from vidflow.records import VideoItem

VALIDATION_RULE = (
    "a fifth of the videos of each class validates, chosen by the SHA-256 of video.split_seed and the name"
)
"""How videos without splits are split. It depends on names alone, so the same source is always split the same way."""

_TRAIN_PER_VAL = 4


def split_by_name(source: Path, named: Sequence[tuple[str, VideoItem]], *, seed: int) -> list[VideoItem]:
    """Return the rows with splits by `VALIDATION_RULE`, in the given order. A row is a whole video.

    Args:
        source: Where they come from, for messages.
        named: Rows with whatever split, each with its name within the source.
        seed: Another seed gives another split.

    Raises:
        ConfigError: If a class has a single video.
    """
    classes: dict[str, list[str]] = defaultdict(list)
    for name, item in named:
        classes[item.label].append(name)
    validating: dict[str, set[str]] = {}
    for label, names in classes.items():
        if len(names) < 2:
            raise ConfigError(
                f"{source}{f', class {label}' if label else ''}: got 1 video; wanted at least 2, one each for training "
                "and validation"
            )
        names.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest())
        validating[label] = set(names[: max(1, len(names) // (_TRAIN_PER_VAL + 1))])
    return [replace(item, split="val" if name in validating[item.label] else "train") for name, item in named]
