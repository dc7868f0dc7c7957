"""Depth estimation: a map of metric depth for every frame.

Axes: B clips, T frames, L tokens of the core, D width, H and W pixels, s pixels a side of one query's block.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vidflow.models.cores.temporal_core import State, TemporalCore
from vidflow.models.tasks.readouts import AttentionReadout
from vidflow.models.tasks.task import Task

# Pixels a side of the block that one query predicts.
BLOCK = 8
# Depths in metres outside of which the ground truth does not count. Source: InternVideo-Next, ScanNet protocol.
MIN_DEPTH_METRES = 0.001
MAX_DEPTH_METRES = 10.0
# Standard deviation of the queries before training. With the published 0.02 every block attends to the whole frame and
# looks like its neighbours to the MLP, and training stays at the mean depth map.
_QUERY_STD = 2.0


class DepthTask(Task):
    """Predict the depth of every pixel in metres, by learned queries that each stand for a block of 8 x 8 pixels.

    Source: Orlova et al. 2026 (arXiv 2605.19137) and 4DS (arXiv 2412.15212), dense attention readout; the output is
    linear, in metres. The published size is 224; here it is any multiple of 8. The published code has no loss; ours
    is the mean over valid pixels of the squared plus the relative error. The squares matter: the absolute error alone
    is least at the median, which is the background wherever objects pass, and training stalls there.
    """

    def __init__(
        self,
        core: TemporalCore,
        *,
        num_depths: int,
        chunk_frames: int | None,
        image_size: int,
        width: int,
        num_heads: int,
    ) -> None:
        if image_size < BLOCK or image_size % BLOCK:
            raise ValueError(f"image_size is {image_size}; depth needs a multiple of {BLOCK} pixels")
        super().__init__(core, num_depths=num_depths, chunk_frames=chunk_frames)
        self.side = image_size // BLOCK
        self.readout = AttentionReadout(
            core.embed_dim,
            BLOCK**2,
            width=width,
            num_heads=num_heads,
            num_queries=self.side**2,
            num_frames=1,
            query_std=_QUERY_STD,
        )
        # Begin in the middle of the range rather than at zero metres, thousands of steps away.
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
        """Take `depth` (B, T, H, W) in metres, 0 where unknown; without any valid pixel the loss is zero."""
        mask = valid_depth(targets["depth"])
        wanted = targets["depth"][mask].float()
        error = (predictions["depth"].float()[mask] - wanted).abs()
        return (error.square() + error / wanted).sum() / max(1, len(wanted))


def valid_depth(depth: Float[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """Select the pixels whose true depth counts."""
    return (depth >= MIN_DEPTH_METRES) & (depth <= MAX_DEPTH_METRES)
