"""Measure ALGM's thresholds once on a sample of frames, to write them into a configuration.

Axes: B frames, H and W pixels.
"""

from dataclasses import asdict, dataclass, field, replace

import torch
from jaxtyping import UInt8
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.encoder import FrozenEncoder, shape_of
from vidflow.models.encoder.reduced_vit import walk_reduced
from vidflow.models.encoder.vit import check_blocks
from vidflow.models.reduction.assignment import Assignment
from vidflow.models.reduction.in_block import BlockView
from vidflow.models.reduction.matching import match_tokens
from vidflow.models.reduction.windows import BlockWindows, calibrated_threshold, window_members, window_similarity


@torch.inference_mode()
def calibrate_windows(
    encoder: FrozenEncoder,
    frames: UInt8[Tensor, "B H W 3"],
    *,
    fraction: float | None = None,
    window: int = 2,
    local_block: int = 0,
    global_block: int = 4,
    frames_per_batch: int = 64,
) -> BlockWindows:
    """Measure similarities on frames of the training split and return the reducer with both thresholds fixed.

    Args:
        encoder: An encoder without reduction.
        frames: The sample, at the encoder's size; about a thousand frames.
        fraction: Share of windows, and then of sources, to merge on the sample, in (0, 1). None uses the published
            rules: the mean plus one standard deviation for windows, plus 1 / l of one for block l (from 1).
        window: Side of a window in patches.
        local_block: Block in which windows merge, from 0.
        global_block: Block in which matched tokens merge, from 0.
        frames_per_batch: Frames that the encoder processes at once.

    Raises:
        VidflowError: The frames of a clip see one another in the encoder.

    Source: ALGM (Norouzi et al., CVPR 2024): automatic local threshold, and the global threshold of a batch. Here the
    global threshold is that of the whole sample.
    """
    if encoder.parts is not None:
        raise VidflowError(
            f"{encoder.weights} holds merged adapters, whose frames see one another; calibrate with the weights that "
            "they were trained on"
        )
    check_blocks(encoder.vit)
    # No cosine reaches 2: the first pass merges nothing, the second pass merges windows only.
    reducer = BlockWindows(
        local_threshold=2.0, global_threshold=2.0, local_block=local_block, global_block=global_block, window=window
    )
    reducer.check(shape_of(encoder.vit), num_frames=1)
    for name, block, sigmas in (
        ("local_threshold", local_block, 1.0),
        ("global_threshold", global_block, 1 / (global_block + 1)),
    ):
        recorder = _Recorder(**asdict(reducer), recorded_block=block)
        for batch in frames.split(frames_per_batch):
            walk_reduced(encoder.vit, encoder.images(batch), depths=[block], normalize=False, reducer=recorder)
        threshold = calibrated_threshold(torch.cat(recorder.similarities), sigmas=sigmas, fraction=fraction)
        reducer = replace(reducer, **{name: threshold})  # type: ignore[arg-type]
    return reducer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorder(BlockWindows):
    """Records the similarities of one block."""

    recorded_block: int
    similarities: list[Tensor] = field(default_factory=list)

    def assign(self, view: BlockView) -> Assignment | None:
        if view.index == self.recorded_block:
            self.similarities.append(self._similarity(view).flatten().cpu())
        return BlockWindows.assign(self, view)

    def _similarity(self, view: BlockView) -> Tensor:
        if view.index == self.local_block:
            side = self.window
            return window_similarity(view.tokens, window_members((1, *view.grid), (1, side, side), view.tokens.device))
        scores = match_tokens(view.tokens, first=view.num_prefix % 2, valid=view.valid).scores
        return scores[scores.isfinite()]


__all__ = ["calibrate_windows"]
