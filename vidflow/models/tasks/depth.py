"""Depth estimation: a map of metric depth for every frame.

Axes: B clips, T frames, L tokens of the core, D width, H and W pixels.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidflow.config.tasks import facts_of
from vidflow.models.cores.temporal_core import State, TemporalCore
from vidflow.models.tasks.metrics.depth import MAX_DEPTH_METRES, DepthMetric, valid_depth
from vidflow.models.tasks.options import TaskOptions
from vidflow.models.tasks.readouts import AttentionReadout
from vidflow.models.tasks.spec import TaskSpec, TrivialAnswer
from vidflow.models.tasks.task import Task

# Side in pixels of the block that one query predicts.
BLOCK = 8
# Initial standard deviation of the queries. With the published 0.02 every query attends to the whole frame, all blocks
# look alike to the MLP, and training stays at the mean depth map.
_QUERY_STD = 2.0


class DepthTask(Task):
    """Predict the depth of every pixel in metres; each learned query predicts a block of 8 x 8 pixels.

    Source: Orlova et al. 2026 (arXiv 2605.19137) and 4DS (arXiv 2412.15212), dense attention readout; the output is
    linear, in metres. The published size is 224; here it is any multiple of 8. The published code has no loss; ours
    is the mean over valid pixels of the squared plus the relative error. The squared error is needed: the median
    minimises the absolute error alone, it is the background where objects pass by, and training stalls there.
    """

    def __init__(self, core: TemporalCore, options: TaskOptions) -> None:
        width, num_heads = options.readout(heads=16)
        if options.image_size < BLOCK or options.image_size % BLOCK:
            raise ValueError(f"image_size is {options.image_size}; depth needs a multiple of {BLOCK} pixels")
        super().__init__(core, options)
        self.side = options.image_size // BLOCK
        self.readout = AttentionReadout(
            core.embed_dim,
            BLOCK**2,
            width=width,
            num_heads=num_heads,
            num_queries=self.side**2,
            num_frames=1,
            query_std=_QUERY_STD,
        )
        # Start in the middle of the range: zero metres is thousands of steps away.
        nn.init.constant_(self.readout.classifier.bias, MAX_DEPTH_METRES / 2)

    def read(
        self, features: Float[Tensor, "B T L D"], queries: dict[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State]:
        """Return `depth` (B, T, H, W) in metres."""
        del queries
        blocks = self.readout(features.flatten(0, 1)[:, None])
        tiles = blocks.view(*features.shape[:2], self.side, self.side, BLOCK, BLOCK).transpose(3, 4)
        return {"depth": tiles.flatten(4, 5).flatten(2, 3)}, state

    def loss(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Compare with `depth` (B, T, H, W) in metres, 0 where unknown; if no pixel is valid, the loss is zero."""
        mask = valid_depth(targets["depth"])
        wanted = targets["depth"][mask].float()
        error = (predictions["depth"].float()[mask] - wanted).abs()
        return (error.square() + error / wanted).sum() / max(1, len(wanted))


def _mean_depth(targets: Iterator[dict[str, Tensor]], num_classes: int) -> Float[Tensor, "H W"]:
    """Average the valid depths of all frames per pixel; a pixel without valid depth gets the mean of all pixels."""
    del num_classes
    total, count = torch.zeros(()), torch.zeros(())
    for clip in targets:
        depth = clip["depth"][0].double()
        mask = valid_depth(depth)
        total, count = total + depth.where(mask, 0.0).sum(0), count + mask.sum(0)
    overall = total.sum() / count.sum().clamp(min=1)
    return torch.where(count > 0, total / count.clamp(min=1), overall).float()


DEPTH = TaskSpec(
    facts=facts_of("depth"),
    build=DepthTask,
    build_metric=DepthMetric,
    trivial=TrivialAnswer(
        words="the mean depth map of the training split",
        fit=_mean_depth,
        answer=lambda mean, targets: {"depth": mean.expand_as(targets["depth"])},
    ),
)
