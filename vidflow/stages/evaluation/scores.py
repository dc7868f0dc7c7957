"""Scores of a point: accuracy per video with intervals, and its difference to the same model without token reduction.

Axes: V videos, n clips, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from vidflow.errors import VidflowError
from vidflow.models.tasks.metrics.classification import wilson_interval
from vidflow.models.tasks.metrics.paired import mcnemar_p, paired_interval
from vidflow.stages.evaluation.files import ShardLogits

_TOP = 5
ACTION = "action"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and the ends of its 95 percent interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Accuracy of a point minus that of its model without token reduction, on the same videos.

    Attributes:
        top1: Difference of the accuracies, with a bootstrap interval over videos.
        p: p-value of McNemar's exact test.
        gained: Videos that only the point has right.
        lost: Videos that only the model without reduction has right.
    """

    top1: Interval
    p: float
    gained: int
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadScore:
    """Accuracy of one head, or of both at once.

    Attributes:
        head: `class`, `verb`, `noun`, or `action` for verb and noun both right.
        num_videos: V.
        top1: Share of videos whose most likely class is right.
        top5: Share of videos whose class is among the five most likely; None for `action`.
        change: Against r = 0; None for r = 0 itself.
    """

    head: str
    num_videos: int
    top1: Interval
    top5: Interval | None
    change: Change | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoAnswers:
    """What a point said of every video.

    Attributes:
        videos: Keys of the videos, sorted.
        right: Whether the most likely class is right, by head, and by `action`.
        top5: Whether the class is among the five most likely, by head.
    """

    videos: Sequence[str]
    right: Mapping[str, Bool[np.ndarray, " V"]]
    top5: Mapping[str, Bool[np.ndarray, " V"]]


def answer_videos(
    files: Sequence[ShardLogits],
    video_of: Mapping[int, str],
    class_of: Mapping[str, Sequence[int]],
) -> VideoAnswers:
    """Average the probabilities of all clips and squares of each video, and compare with the labels.

    Args:
        files: The files of all squares and shards of a point.
        video_of: Video of each clip.
        class_of: For each head, class of every label of the manifest, by number.

    Raises:
        VidflowError: If there is no clip, or the files are not of these clips.
    """
    files = [file for file in files if len(file.keys)]
    if not files:
        raise VidflowError("no clip was evaluated; `vidflow rejects list` says which videos are left out and why")
    keys = np.concatenate([file.keys for file in files])
    labels = np.concatenate([file.labels for file in files])
    named = np.array([video_of[int(key)] for key in keys])
    videos, first, row = np.unique(named, return_index=True, return_inverse=True)
    right: dict[str, np.ndarray] = {}
    top5: dict[str, np.ndarray] = {}
    for head, classes in class_of.items():
        logits = np.concatenate([file.logits[head] for file in files])
        truth = np.asarray(classes)[labels[first]]
        mean = _mean_probability(logits, row, len(videos))
        right[head] = mean.argmax(axis=1) == truth
        top = np.argsort(-mean, axis=1, kind="stable")[:, :_TOP]
        top5[head] = (top == truth[:, None]).any(axis=1)
    if len(right) > 1:
        right[ACTION] = np.logical_and.reduce(list(right.values()))
    return VideoAnswers(videos=videos.tolist(), right=right, top5=top5)


def score(answers: VideoAnswers, baseline: VideoAnswers | None) -> list[HeadScore]:
    """Return the accuracy of every head.

    Args:
        answers: What the point said.
        baseline: What the same model said without token reduction; None if that is the point.

    Raises:
        VidflowError: If the two are of different videos.
    """
    if baseline is not None and baseline.videos != answers.videos:
        raise VidflowError("the point and r = 0 have different videos; run the same command again")
    return [
        HeadScore(
            head=head,
            num_videos=len(right),
            top1=_share(right),
            top5=_share(answers.top5[head]) if head in answers.top5 else None,
            change=None if baseline is None else _change(right, baseline.right[head]),
        )
        for head, right in answers.right.items()
    ]


def _mean_probability(
    logits: Float64[np.ndarray, "n K"], row: Int64[np.ndarray, " n"], num_videos: int
) -> Float64[np.ndarray, "V K"]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    summed = np.zeros((num_videos, logits.shape[1]))
    np.add.at(summed, row, shifted / shifted.sum(axis=1, keepdims=True))
    mean: Float64[np.ndarray, "V K"] = summed / np.bincount(row, minlength=num_videos)[:, None]
    return mean


def _share(hits: Bool[np.ndarray, " V"]) -> Interval:
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return Interval(value=float(hits.mean()), low=low, high=high)


def _change(right: Bool[np.ndarray, " V"], before: Bool[np.ndarray, " V"]) -> Change:
    low, high = paired_interval(before, right)
    return Change(
        top1=Interval(value=float(right.mean() - before.mean()), low=low, high=high),
        p=mcnemar_p(before, right),
        gained=int((right & ~before).sum()),
        lost=int((before & ~right).sum()),
    )


__all__ = ["ACTION", "Change", "HeadScore", "Interval", "VideoAnswers", "answer_videos", "score"]
