"""The report's content about a classifier's answers: examples, confusions, and the change against another trial."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from vidflow.config.schema import Feed
from vidflow.config.tasks import Mode
from vidflow.records import TrialResult
from vidflow.report.changes import Answers, TrialChange, choose_rival, compare_answers
from vidflow.report.results import Classified, read_classified
from vidflow.report.sections import NUM_CONFUSED, Example
from vidflow.report.tables import RankedTrial, most_confused
from vidflow.stages.experiment import Experiment
from vidflow.training.feeds import Clips

_CLIPS_PER_PAIR = 3
_MAX_OTHERS = 24
NAMED_CHANGES = 6
"""Clips that the page names on each side of a change."""


def gather_classes(
    experiment: Experiment,
    ranked: Sequence[RankedTrial],
    mode: Mode,
    reader: Clips,
    frames_of: Callable[[str], UInt8[np.ndarray, "T H W 3"]],
) -> dict[str, Any]:
    """Return the fields of a `TaskSection` that only a classifier has; empty for other tasks and without a result.

    Args:
        experiment: The experiment.
        ranked: Its trials of one task, best first.
        mode: Whether more of the score is better.
        reader: The best trial's clips.
        frames_of: Gives a clip's frames by its key.
    """
    classified = read_classified(ranked[0].result)
    if classified is None:
        return {}
    keys = [reader.keys[index] for index in classified.indices]
    confusion, change = classified.confusion, _compare(experiment, ranked, mode, classified, keys)
    confused: dict[tuple[int, int], list[str]] = {}
    for pair in most_confused(confusion, NUM_CONFUSED):
        rows = (classified.labels == pair.label) & (classified.predicted == pair.predicted)
        confused[pair.label, pair.predicted] = [keys[i] for i in np.flatnonzero(rows)[:_CLIPS_PER_PAIR]]
    shown = _choose_examples(classified, experiment.config.report.num_examples)
    named = [key for pair in confused.values() for key in pair]
    named += [key for side in ((change.gained, change.lost) if change else ()) for key in side[:NAMED_CHANGES]]
    others = [keys.index(key) for key in dict.fromkeys(named)]
    names = reader.metadata["class_names"]

    def show(clips: Iterable[int]) -> list[Example]:
        return [
            Example(
                frames=frames_of(keys[clip]),
                key=keys[clip],
                label=names[classified.labels[clip]],
                predicted=names[classified.predicted[clip]],
                probability=float(classified.probabilities[clip]),
            )
            for clip in clips
        ]

    return {
        "class_names": names,
        "counted": classified.counted,
        "confusion": confusion,
        "confused_clips": confused,
        "change": change,
        "examples": show(shown),
        "others": show([clip for clip in others if clip not in shown][:_MAX_OTHERS]),
    }


def clips_of(experiment: Experiment, result: TrialResult) -> Clips:
    """Return the clips of a trial, to which the positions in its predictions refer."""
    # Trials of older versions have no feed.
    feed = cast(Feed, result.settings.get("feed", "features"))
    return experiment.clips_of(str(result.settings["features"]), feed)


def _choose_examples(classified: Classified, num_examples: int) -> list[int]:
    """Return clips to show: up to half of them are mistakes; both are in the order of the split."""
    wrong = np.flatnonzero(classified.labels != classified.predicted)
    right = np.flatnonzero(classified.labels == classified.predicted)
    num_wrong = min(len(wrong), num_examples // 2)
    return [int(clip) for clip in (*wrong[:num_wrong], *right[: num_examples - num_wrong])]


def _compare(
    experiment: Experiment, ranked: Sequence[RankedTrial], mode: Mode, best: Classified, keys: Sequence[str]
) -> TrialChange | None:
    """Compare the best trial with another; None if there is no other, or if one answers clips and the other videos."""
    found = choose_rival(ranked, mode)
    theirs = read_classified(found[0].result) if found is not None else None
    if found is None or theirs is None or theirs.counted != best.counted:
        return None
    rival, is_baseline = found
    reader = clips_of(experiment, rival.result)
    other = Answers(
        keys=[reader.keys[index] for index in theirs.indices], labels=theirs.labels, predicted=theirs.predicted
    )
    ours = Answers(keys=keys, labels=best.labels, predicted=best.predicted)
    return compare_answers(ours, other, rival=rival, is_baseline=is_baseline)
