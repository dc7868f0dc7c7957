"""Action recognition: a class for the clip so far, at every frame.

Axes: B clips, T frames, L tokens of the core, D width, C classes.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vidflow.models.cores.temporal_core import State, TemporalCore
from vidflow.models.tasks.readouts import AttentionReadout
from vidflow.models.tasks.task import Task


class ClassificationTask(Task):
    """Predict the class of a clip by an attention readout per frame; the answer at the last frame counts.

    Source: Orlova et al. 2026 (arXiv 2605.19137), streaming readout for Something-Something v2. The published code
    has no loss; ours is cross-entropy at the last frame plus a fraction of the mean over all frames.
    """

    def __init__(
        self,
        core: TemporalCore,
        *,
        num_depths: int,
        chunk_frames: int | None,
        num_classes: int,
        width: int,
        num_heads: int,
        frame_loss_weight: float,
    ) -> None:
        super().__init__(core, num_depths=num_depths, chunk_frames=chunk_frames)
        self.readout = AttentionReadout(core.embed_dim, num_classes, width=width, num_heads=num_heads)
        self.frame_loss_weight = frame_loss_weight

    def read(
        self, features: Float[Tensor, "B T L D"], queries: dict[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State]:
        """Return `logits` (B, T, C)."""
        del queries
        logits = self.readout(features.flatten(0, 1)[:, None])
        return {"logits": logits.view(*features.shape[:2], -1)}, state

    def loss(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Take `label` (B,); the frames share the clip's label."""
        labels = targets["label"][:, None].expand(predictions["logits"].shape[:2])
        logits = predictions["logits"].float().flatten(0, 1)
        losses = functional.cross_entropy(logits, labels.flatten(), reduction="none").view_as(labels)
        weights = losses.new_full((losses.shape[1],), self.frame_loss_weight / losses.shape[1])
        weights[-1] += 1
        return (losses @ weights).mean()
