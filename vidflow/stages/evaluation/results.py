"""The results of an evaluation, which tables, the page and the tracking store show."""

from collections.abc import Sequence
from dataclasses import dataclass

from vidflow.stages.evaluation.points import Point, PointCost
from vidflow.stages.evaluation.scores import ACTION, HeadScore


@dataclass(frozen=True, slots=True, kw_only=True)
class PointResult:
    """One point, measured.

    Attributes:
        point: The point.
        scores: Accuracy of every head.
        cost: Multiply-accumulates and tokens per clip.
        clips_per_second: Clips per second of one worker, the model's forward alone; None if there was no clip.
        matching_share: Share of the forward's time that token reduction takes; None if it was not measured.
    """

    point: Point
    scores: Sequence[HeadScore]
    cost: PointCost
    clips_per_second: float | None
    matching_share: float | None

    @property
    def main(self) -> HeadScore:
        """The score that the page draws: of the class, or of the action."""
        return next((score for score in self.scores if score.head == ACTION), self.scores[0])

    @property
    def metrics(self) -> dict[str, float]:
        """Everything as named numbers."""
        values: dict[str, float] = {
            "gmacs": self.cost.macs / 1e9,
            "tokens_first": self.cost.tokens[0],
            "tokens_last": self.cost.tokens[-1],
        }
        if self.clips_per_second is not None:
            values["clips_per_second"] = self.clips_per_second
        if self.matching_share is not None:
            values["matching_share"] = self.matching_share
        for score in self.scores:
            prefix = "" if score.head == "class" else f"{score.head}/"
            values[f"{prefix}num_videos"] = score.num_videos
            for name, share in (("top1", score.top1), ("top5", score.top5)):
                if share is not None:
                    values |= {
                        f"{prefix}{name}": share.value,
                        f"{prefix}{name}_low": share.low,
                        f"{prefix}{name}_high": share.high,
                    }
            if score.change is not None:
                values |= {
                    f"{prefix}top1_change": score.change.top1.value,
                    f"{prefix}top1_change_low": score.change.top1.low,
                    f"{prefix}top1_change_high": score.change.top1.high,
                    f"{prefix}mcnemar_p": score.change.p,
                }
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """One model with all its points, r = 0 first.

    Attributes:
        name: Its name.
        about: What it is, in words.
        points: Its points.
        num_padded: Clips of the split whose video is shorter than the clip, so that its last frame is repeated.
        num_clips: Clips of the split in one square.
    """

    name: str
    about: str
    points: Sequence[PointResult]
    num_padded: int
    num_clips: int

    @property
    def baseline(self) -> PointResult:
        """The model without token reduction."""
        return self.points[0]


__all__ = ["ModelResult", "PointResult"]
