"""Action recognition: a class for the clip so far, at every frame.

Axes: B clips, T frames, L tokens of the core, D width, C classes.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vidflow.config.tasks import facts_of
from vidflow.models.cores.temporal_core import State, TemporalCore
from vidflow.models.tasks.metrics.classification import ClassificationMetric
from vidflow.models.tasks.options import TaskOptions
from vidflow.models.tasks.readouts import AttentionReadout, ClassTokenReadout
from vidflow.models.tasks.spec import TaskSpec, TrivialAnswer
from vidflow.models.tasks.task import Task


class ClassificationTask(Task):
    """Predict the class of a clip by a readout per frame; the metric uses the last frame's prediction.

    Source: Orlova et al. 2026 (arXiv 2605.19137), streaming readout for Something-Something v2. The published code
    has no loss; ours is cross-entropy at the last frame plus a fraction of the mean over all frames.
    """

    def __init__(self, core: TemporalCore, options: TaskOptions) -> None:
        if not options.num_classes or options.num_classes < 2:
            raise ValueError(f"num_classes is {options.num_classes}; classification needs at least 2")
        super().__init__(core, options)
        self.readout: AttentionReadout | ClassTokenReadout
        if options.class_token:
            self.readout = ClassTokenReadout(core.output_dim, options.num_classes)
        else:
            width, num_heads = options.readout(dim=768, heads=12)
            self.readout = AttentionReadout(core.output_dim, options.num_classes, width=width, num_heads=num_heads)
        self.every_frame_weight = options.every_frame_weight
        self.label_smoothing = options.label_smoothing

    def read(
        self, features: Float[Tensor, "B T L D"], queries: dict[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State]:
        """Return `logits` (B, T, C)."""
        del queries
        logits = self.readout(features.flatten(0, 1)[:, None])
        return {"logits": logits.view(*features.shape[:2], -1)}, state

    def loss(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Compare with `label` (B,); all frames have the clip's label, which is smoothed in training mode only."""
        labels = targets["label"][:, None].expand(predictions["logits"].shape[:2])
        logits = predictions["logits"].float().flatten(0, 1)
        smoothing = self.label_smoothing if self.training else 0.0
        losses = functional.cross_entropy(logits, labels.flatten(), reduction="none", label_smoothing=smoothing)
        losses = losses.view_as(labels)
        weights = losses.new_full((losses.shape[1],), self.every_frame_weight / losses.shape[1])
        weights[-1] += 1
        return (losses @ weights).mean()


def _count_classes(targets: Iterator[dict[str, Tensor]], num_classes: int) -> Float[Tensor, " C"]:
    """Count the clips of each class."""
    return torch.bincount(torch.cat([clip["label"] for clip in targets]), minlength=num_classes).float()


CLASSIFICATION = TaskSpec(
    facts=facts_of("classification"),
    build=ClassificationTask,
    build_metric=ClassificationMetric,
    trivial=TrivialAnswer(
        words="the most frequent class of the training split",
        fit=_count_classes,
        answer=lambda counts, targets: {"logits": counts.expand(len(targets["label"]), 1, -1)},
    ),
)
