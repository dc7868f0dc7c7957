"""A task's metrics for a trivial answer, which learns nothing from pictures; a trial has to beat them."""

import numpy as np
import torch
from torch import Tensor

from vidflow.config.schema import SplitNames
from vidflow.config.tasks import TaskFacts, TaskName
from vidflow.errors import VidflowError
from vidflow.models.tasks import spec_of
from vidflow.spread import spread
from vidflow.training.batches import read_annotations
from vidflow.training.feeds import Clips
from vidflow.training.votes import Count, videos_of

# Training clips, spread evenly, whose annotations are read. More would hardly change a mean and would cost minutes.
_FITTED_CLIPS = 512


def baseline_metrics(
    task: TaskName, reader: Clips, names: SplitNames | None = None, *, by_video: bool = False
) -> dict[str, float]:
    """Return the trivial answer's metrics on the validation split, with the names of a trial's, such as `val/top1`.

    The trial's own metric computes them over the same clips. The task's `TrivialAnswer` says what the answer is.

    Args:
        task: The task.
        reader: Any feature set of the experiment, or its shards; only labels and annotations are read.
        names: Which splits the trials use; None: the usual ones.
        by_video: Whether the metric counts videos, not clips.

    Raises:
        VidflowError: If a clip lacks an annotation, or the split holds nothing that the metric counts.
    """
    spec, splits, names = spec_of(task), np.asarray(reader.splits), names or SplitNames()
    train = np.flatnonzero(splits == names.train)
    chosen = train[spread(len(train), _FITTED_CLIPS)] if spec.facts.annotations else train
    known = (_targets(spec.facts, reader, int(index)) for index in chosen)
    fitted = spec.trivial.fit(known, len(reader.metadata["class_names"]))
    measured = np.flatnonzero(splits == names.val).tolist()
    counted = Count(spec.build_metric(), videos_of(reader, measured) if by_video else None)
    for index in measured:
        targets = _targets(spec.facts, reader, index)
        answer = spec.trivial.answer(fitted, targets)
        counted.add([index], answer, targets)
    try:
        values = counted.compute()
    except ValueError as error:
        raise VidflowError(f"{reader.directory}: the validation split cannot be measured: {error}") from error
    return {f"val/{name}": value for name, value in values.items()}


def _targets(facts: TaskFacts, reader: Clips, index: int) -> dict[str, Tensor]:
    """Return the ground truth of one clip as a batch of one."""
    arrays = read_annotations(reader[index], facts.annotations) if facts.annotations else {}
    targets = {name: torch.from_numpy(array)[None] for name, array in arrays.items()}
    return targets | {"label": torch.tensor([reader.labels[index]])}
