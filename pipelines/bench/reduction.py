"""The encoder with token merging against the encoder without it: `vidflow bench CONFIG.yaml --only reduction`.

Weights are random. Attention is the same fused kernel with and without merging. The share of tokens removed is the
share of patch tokens that are missing after the last block; every block merges the same number r.

Axes: B images, N patch tokens, M tokens that are left.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipelines.bench.clock import ROUNDS, Ratio, Target, affordable, bench_targets, median, ratio, take_turns
from vidflow.config.schema import Config
from vidflow.models.encoder import EncoderDtype, FrozenEncoder, build_encoder, shape_of
from vidflow.models.encoder.vit import embed_patches
from vidflow.models.reduction.assignment import Assignment, follow
from vidflow.models.reduction.bipartite import BlockBipartite
from vidflow.models.reduction.in_block import BlockView
from vidflow.models.reduction.macs import VitShape, count_macs

ENCODERS = ("vit_small_patch16_224", "vit_base_patch16_224")
IMG_SIZE = 224
# The last share halves the FLOPs.
REMOVED = (0.25, 0.5, 0.75, 0.98)
# Longest time of a batch on a perfect machine; it limits the images per batch.
_BATCH_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReductionRow:
    """One encoder with one share of tokens removed.

    Attributes:
        encoder: timm's name.
        removed: Share of patch tokens to remove.
        num_merged: Tokens merged in each block, ToMe's r.
        tokens_left: Patch tokens after the last block.
        mean_tokens: Patch tokens that enter a block, on average.
        batch_size: Images per call.
        images_per_second: Speed of the encoder, from decoded images.
        speedup: Speed-up over the encoder without reduction.
        flop_ratio: Multiply-accumulates without reduction over those with reduction, including matching.
        merging_share: Share of the blocks' time that matching and merging take.
    """

    encoder: str
    removed: float
    num_merged: int
    tokens_left: int
    mean_tokens: float
    batch_size: int
    images_per_second: float
    speedup: Ratio
    flop_ratio: float
    merging_share: Ratio

    @property
    def gained(self) -> Ratio:
        """Speed-up over FLOP ratio; 1 if the time falls by the same factor as the FLOPs."""
        return Ratio(*(value / self.flop_ratio for value in self.speedup))

    def __str__(self) -> str:
        """Return the line."""
        return (
            f"{self.encoder:<22} {self.removed:>7.0%} {self.num_merged:>3} {self.tokens_left:>5} "
            f"{self.mean_tokens:>5.0f} {self.batch_size:>5} {self.images_per_second:>9.2f} {self.speedup!s:>12} "
            f"{self.flop_ratio:>6.2f} {self.gained!s:>12} {self.merging_share!s:>12}"
        )


HEADER = (
    f"{'encoder':<22} {'removed':>7} {'r':>3} {'left':>5} {'mean':>5} {'batch':>5} {'images/s':>9} {'speed-up':>12} "
    f"{'FLOPs':>6} {'of FLOPs':>12} {'merging':>12}"
)
LEGEND = (
    "removed: patch tokens gone after the last block, r in each; left, mean: patch tokens after the last block and "
    "entering a block; FLOPs: those without over those with; of FLOPs: speed-up over that; merging: matching and "
    "merging's share of the blocks' time; in brackets by processor time"
)


def measure_reduction(config: Config) -> Iterator[str]:
    """Yield the lines of every encoder and share, on each device."""
    torch.set_num_threads(max(1, int(config.resources.extract.num_cpus)))
    yield f"reduction: {LEGEND}"
    for target in bench_targets():
        if target.device.type == "cuda" and target.dtype == torch.float32:
            continue
        yield f"reduction: {target}; {IMG_SIZE} pixels, random weights, the same fused attention with and without"
        yield HEADER
        for name in ENCODERS:
            rows = measure_encoder(name, target, img_size=IMG_SIZE, most_images=config.resources.frames_per_batch)
            yield from map(str, rows)


def measure_encoder(
    name: str, target: Target, *, img_size: int, most_images: int, rounds: int = ROUNDS
) -> list[ReductionRow]:
    """Time the encoder without reduction, the encoder with each share, and the merging alone, in turns."""
    dtype: EncoderDtype = "bfloat16" if target.dtype == torch.bfloat16 else "float32"
    encoder = build_encoder(
        name=name, weights="random:0", img_size=img_size, depths=[-1], device=str(target.device), dtype=dtype
    )
    shape = shape_of(encoder.vit)
    dense_macs = count_macs(shape, [shape.num_patches] * (shape.depth + 1))
    batch_size = affordable(2 * dense_macs, target, seconds=_BATCH_SECONDS, most=most_images)
    frames = torch.randint(256, (batch_size, img_size, img_size, 3), dtype=torch.uint8, device=target.device)
    works: dict[str, Callable[[], object]] = {
        "none": _encoding(encoder, frames, None),
        "embed": _embedding(encoder, frames),
    }
    reducers = {removed: merge_in_every_block(removed, shape) for removed in REMOVED}
    for removed, reducer in reducers.items():
        works[f"{removed}"] = _encoding(encoder, frames, reducer)
        works[f"merge {removed}"] = merging(encoder, frames, reducer)
    times = take_turns(works, target.device, rounds=rounds)
    rows = []
    for removed, reducer in reducers.items():
        counts = reducer.tokens_left(shape)
        seconds = times[f"{removed}"]
        rows.append(
            ReductionRow(
                encoder=name,
                removed=removed,
                num_merged=counts[0] - counts[1],
                tokens_left=counts[-1],
                mean_tokens=sum(counts[:-1]) / shape.depth,
                batch_size=batch_size,
                images_per_second=batch_size / median(seconds),
                speedup=ratio(times["none"], seconds),
                flop_ratio=dense_macs / reducer.macs(shape, num_blocks=shape.depth, counts=np.array(counts[-1:])),
                merging_share=ratio(times[f"merge {removed}"], seconds - times["embed"]),
            )
        )
    return rows


def merge_in_every_block(removed: float, shape: VitShape) -> BlockBipartite:
    """Return ToMe with the same r in every block, so that about this share of the patch tokens is removed."""
    return BlockBipartite(num_merged=round(removed * shape.num_patches / shape.depth))


def _encoding(encoder: FrozenEncoder, frames: Tensor, reducer: BlockBipartite | None) -> Callable[[], object]:
    def encode() -> None:
        encoder.reduction = reducer
        encoder(frames)

    return encode


def _embedding(encoder: FrozenEncoder, frames: Tensor) -> Callable[[], object]:
    """Return a function that does what the encoder does before its first block."""

    def embed() -> None:
        with torch.inference_mode():
            embed_patches(encoder.vit, encoder.images(frames.to(encoder.device)))

    return embed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorder(BlockBipartite):
    """Records the inputs of a reducer in every block."""

    views: list[BlockView] = field(default_factory=list)

    def assign(self, view: BlockView) -> Assignment | None:
        self.views.append(view)
        return BlockBipartite.assign(self, view)


def merging(
    encoder: FrozenEncoder, frames: Tensor, reducer: BlockBipartite
) -> Callable[[], tuple[Float[Tensor, "B M"], Int[Tensor, "B N"]]]:
    """Return a function that matches and merges the recorded outputs of all blocks, without running the blocks.

    The function returns the sizes of the remaining tokens and the token of each patch, as the encoder does.
    """
    recorder = _Recorder(num_merged=reducer.num_merged)
    _encoding(encoder, frames, recorder)()
    views: Sequence[BlockView] = recorder.views

    def merge() -> tuple[Tensor, Tensor]:
        batch, num_patches = views[0].tokens.shape[:2]
        device = views[0].tokens.device
        with torch.inference_mode():
            sizes = torch.ones(batch, num_patches, device=device)
            assignment = torch.arange(num_patches, device=device).expand(batch, -1)
            for view in views:
                step = reducer.assign(view)
                assert step is not None
                _, sizes = step.merge(view.tokens, sizes)
                assignment = follow(assignment, step.row_of)
        return sizes, assignment

    return merge
