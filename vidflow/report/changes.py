"""How two classifiers differ: class by class and clip by clip, on the clips that both have answered.

Axes: V validation clips, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from vidflow.config.tasks import Mode
from vidflow.report.tables import RankedTrial, group_by_seed

BASELINE_CORE = "mean"
"""The core that does not see the order of frames; a comparison with it shows what time adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A classifier's answers.

    Attributes:
        keys: Content key of each clip.
        labels: True classes.
        predicted: Most likely classes.
    """

    keys: Sequence[str]
    labels: Int[np.ndarray, " V"]
    predicted: Int[np.ndarray, " V"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassChange:
    """Clips of one class that each of two trials gets right.

    Attributes:
        label: The class.
        before: Right in the first trial.
        after: Right in the second one.
        total: Clips of the class.
    """

    label: int
    before: int
    after: int
    total: int

    @property
    def change(self) -> float:
        """Difference of the shares, in [-1, 1]."""
        return (self.after - self.before) / self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialChange:
    """What changes from one trial to the best.

    Attributes:
        rival: The other trial.
        is_baseline: Whether it was taken for its core, which ignores time; else it is the runner-up.
        classes: Classes with clips, the largest gain first.
        gained: Keys of clips that only the best trial gets right.
        lost: Keys of clips that only the other trial gets right.
    """

    rival: RankedTrial
    is_baseline: bool
    classes: Sequence[ClassChange]
    gained: Sequence[str]
    lost: Sequence[str]


def choose_rival(ranked: Sequence[RankedTrial], mode: Mode) -> tuple[RankedTrial, bool] | None:
    """Return the trial to compare the best with, and whether it is a baseline; None if there is no other.

    It is the best trial of the core without order if the best has another core, else the best of other settings, else
    the best of another seed.
    """
    scored = [row for row in ranked if row.score is not None and not row.failed]
    if len(scored) < 2:
        return None
    best, *others = scored
    core = best.result.settings.get("core")
    plain = [row for row in others if row.result.settings.get("core") == BASELINE_CORE]
    if core != BASELINE_CORE and plain:
        return plain[0], True
    groups = [group.trials for group in group_by_seed(scored, mode)]
    ours = next(trials for trials in groups if any(row is best for row in trials))
    return next((row for row in others if not any(row is each for each in ours)), others[0]), False


def compare_answers(best: Answers, other: Answers, *, rival: RankedTrial, is_baseline: bool) -> TrialChange:
    """Compare the best trial's answers with another's; feature sets may differ, so clips are matched by their keys."""
    theirs = dict(zip(other.keys, (other.labels == other.predicted).tolist(), strict=True))
    ours = zip(best.keys, best.labels.tolist(), (best.labels == best.predicted).tolist(), strict=True)
    rows = [(key, label, theirs[key], right) for key, label, right in ours if key in theirs]
    classes = []
    for label in sorted({label for _, label, _, _ in rows}):
        pairs = [(before, after) for _, each, before, after in rows if each == label]
        classes.append(
            ClassChange(label=label, before=sum(b for b, _ in pairs), after=sum(a for _, a in pairs), total=len(pairs))
        )
    return TrialChange(
        rival=rival,
        is_baseline=is_baseline,
        classes=sorted(classes, key=lambda each: (-each.change, -each.after / each.total)),
        gained=[key for key, _, before, after in rows if after and not before],
        lost=[key for key, _, before, after in rows if before and not after],
    )
