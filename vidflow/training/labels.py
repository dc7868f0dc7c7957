"""Labels of clips: whether all have one, and clips with the same share of each class."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from vidflow.config.tasks import TaskName, facts_of
from vidflow.errors import VidflowError
from vidflow.training.feeds import Clips


def check_labelled(clips: Clips, indices: Int64[np.ndarray, " clips"], task: TaskName) -> None:
    """Check that clips have the labels that a task wants.

    Raises:
        VidflowError: If one has none.
    """
    unlabelled = [index for index in indices.tolist() if clips.labels[index] < 0]
    if unlabelled and facts_of(task).needs_labels:
        raise VidflowError(
            f"{clips.directory}: {len(unlabelled)} clips of split `{clips.splits[unlabelled[0]]}` have no label, such "
            f"as {clips.keys[unlabelled[0]]}; {task} wants one for each; fill in the manifest's column `label`"
        )


def take_share(
    indices: Int64[np.ndarray, " clips"], owners: Sequence[str], labels: Sequence[int], *, share: float, seed: int
) -> Int64[np.ndarray, " taken"]:
    """Return the clips of a share of each class's owners, at least one, in the order in which they are given.

    Which ones are taken depends on the seed and their keys alone. A smaller share is part of a larger one.

    Args:
        indices: Positions of the clips.
        owners: Key of what the clip at each position shares its label with: its video, or itself.
        labels: Class of the clip at each position; clips without one count as a class.
        share: In (0, 1].
        seed: Seed of the draw.
    """
    classes: dict[int, set[str]] = {}
    for index in indices.tolist():
        classes.setdefault(labels[index], set()).add(owners[index])
    taken = set()
    for label, each in classes.items():
        drawn = sorted(each, key=lambda owner: hashlib.sha256(f"{seed} {owner}".encode()).digest())
        taken |= {(label, owner) for owner in drawn[: math.ceil(share * len(each) - 1e-9)]}
    return indices[[(labels[index], owners[index]) in taken for index in indices.tolist()]]


__all__ = ["check_labelled", "take_share"]
