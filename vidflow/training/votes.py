"""Videos as the unit of a metric: the mean of the probabilities that its clips give decides on a video.

Axes: B clips, T frames, C classes, V videos.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.tasks import Metric
from vidflow.training.feeds import Clips

# So that the logarithm of a probability that is zero in single precision stays finite.
_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(slots=True)
class _Video:
    """What the clips of a video have said so far.

    Attributes:
        first: Position of its first clip, which stands for the video.
        label: Class of the clips.
        num_clips: How many they are.
        total: Sum of their probabilities.
    """

    first: int
    label: int
    num_clips: int
    total: Float[Tensor, " C"]


class VideoVotes:
    """Gathers the answers of clips by video, and gives each video once to a metric of classification."""

    def __init__(self, videos: Sequence[str]) -> None:
        """Start with none.

        Args:
            videos: The video of each clip, by position.
        """
        self._names = videos
        self._videos: dict[str, _Video] = {}

    def add(self, indices: Sequence[int], predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Add the probabilities at the last frame of `logits (B, T, C)`, of the clips at these positions."""
        shares = predictions["logits"][:, -1].detach().float().softmax(-1).cpu().double()
        for index, share, label in zip(indices, shares, targets["label"].tolist(), strict=True):
            video = self._videos.setdefault(self._names[index], _Video(index, label, 0, torch.zeros_like(share)))
            video.num_clips += 1
            video.total = video.total + share

    def count(self, metric: Metric) -> None:
        """Add every video to the metric, as one clip of one frame."""
        if self._videos:
            tensors = self.tensors()
            metric.update({"logits": tensors["logits"][:, None]}, {"label": tensors["labels"]})

    def tensors(self) -> dict[str, Tensor]:
        """Return the answers to store, a row per video: `indices`, `labels`, `num_clips (V,)` and `logits (V, C)`.

        The softmax of the logits is the mean of the clips' probabilities, and the index is that of the first clip.
        """
        videos = list(self._videos.values())
        means = torch.stack([video.total / video.num_clips for video in videos])
        return {
            "indices": torch.tensor([video.first for video in videos]),
            "labels": torch.tensor([video.label for video in videos]),
            "num_clips": torch.tensor([video.num_clips for video in videos]),
            "logits": means.clamp(min=_SMALLEST).log().float(),
        }


class Count:
    """Gives a metric the answers to clips, each as it comes or, by video, together at the end.

    Attributes:
        votes: What the clips of each video have said; None if the metric counts clips.
    """

    def __init__(self, metric: Metric, videos: Sequence[str] | None) -> None:
        """Start with none.

        Args:
            metric: A new metric.
            videos: The video of each clip, by position, if the metric counts videos; None if it counts clips.
        """
        self._metric = metric
        self.votes = None if videos is None else VideoVotes(videos)

    def add(self, indices: Sequence[int], predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        """Add the answers to the clips at these positions."""
        if self.votes is None:
            self._metric.update(predictions, targets)
        else:
            self.votes.add(indices, predictions, targets)

    def compute(self) -> dict[str, float]:
        """Return the metric's values, once all answers are added.

        Raises:
            ValueError: As the metric's `compute`.
        """
        if self.votes is not None:
            self.votes.count(self._metric)
        return self._metric.compute()


def videos_of(clips: Clips, places: Iterable[int], *, instead: str = "trials.trial.score_by=clip") -> list[str]:
    """Return the video of the clip at each position, which the clips at some places must have.

    Args:
        clips: All clips.
        places: Positions of those that are to be known.
        instead: A setting that does without, for the message.

    Raises:
        VidflowError: If the files are of an older version, which does not record it.
    """
    if any(clips.videos[place] is None for place in places):
        raise VidflowError(
            f"{clips.directory}: does not say from which video a clip is; an older vidflow made it: remove this folder "
            f"and the shards that it is made from, and run `vidflow run` again, or set {instead}"
        )
    return [video or "" for video in clips.videos]


__all__ = ["Count", "VideoVotes", "videos_of"]
