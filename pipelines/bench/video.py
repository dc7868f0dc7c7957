"""Video transformers with token merging against the same without: `vidflow bench CONFIG.yaml --only video`.

Models have full size and random weights. The number of tokens merged in each block is the paper's.

Source: "Video, How Do Your Tokens Merge?" (Pollard and Wray, 2025), whose timings used attention that is not fused.
"""

import dataclasses
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.bench.clock import ROUNDS, Ratio, Target, bench_targets, median, ratio, take_turns
from vidflow.config.schema import Config
from vidflow.models.encoder.build import EncoderDtype
from vidflow.models.encoder.video import AttentionKind, VideoEncoder, VideoRecipe, build_video_encoder, with_reduction
from vidflow.models.encoder.video.families import Family
from vidflow.models.encoder.video.state import ClipTokens
from vidflow.models.encoder.video.walk import ClipWalk
from vidflow.models.reduction.bipartite import BlockBipartite

MODELS: dict[Family, int] = {"vivit": 300, "videomae": 150}
"""The paper's models and the number of tokens that it merges in each of their twelve blocks."""
ATTENTIONS: tuple[AttentionKind, ...] = ("fused", "eager")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRow:
    """One model with one way of attending, with and without merging.

    Attributes:
        model: Its family.
        attention: Fused attention or not, in both.
        num_merged: Tokens merged in each block.
        tokens_left: Patch tokens of a clip after the last block.
        dense_clips_per_second: Speed without merging.
        clips_per_second: Speed with merging.
        speedup: Speed-up.
        macs_ratio: Multiply-accumulates without over those with, matching included.
        merging_share: Share of the time that matching and merging take.
        dense_mib: Peak memory of a process that encodes a clip without merging; None on a GPU.
        mib: The same with merging.
    """

    model: Family
    attention: AttentionKind
    num_merged: int
    tokens_left: int
    dense_clips_per_second: float
    clips_per_second: float
    speedup: Ratio
    macs_ratio: float
    merging_share: Ratio
    dense_mib: float
    mib: float

    @property
    def gained(self) -> Ratio:
        """Speed-up over the ratio of multiply-accumulates."""
        return Ratio(*(value / self.macs_ratio for value in self.speedup))

    def __str__(self) -> str:
        """Return the line."""
        return (
            f"{self.model:<10} {self.attention:<9} {self.num_merged:>4} {self.tokens_left:>5} "
            f"{self.dense_clips_per_second:>10.3f} {self.clips_per_second:>10.3f} {self.speedup!s:>12} "
            f"{self.macs_ratio:>6.2f} {self.gained!s:>12} {self.merging_share!s:>12} {self.dense_mib:>8.0f} "
            f"{self.mib:>8.0f}"
        )


HEADER = (
    f"{'model':<10} {'attention':<9} {'r':>4} {'left':>5} {'clips/s':>10} {'merged':>10} {'speed-up':>12} {'MACs':>6} "
    f"{'of MACs':>12} {'merging':>12} {'MiB':>8} {'merged':>8}"
)
LEGEND = (
    "r: tokens merged in each block; left: patch tokens of a clip after the last; MACs: those without merging over "
    "those with; of MACs: speed-up over that; merging: share of the time that matching and merging take; MiB: peak "
    "memory added by one clip; in brackets by processor time"
)


def measure_video(config: Config) -> Iterator[str]:
    """Yield the lines of every model and way of attending, on each device."""
    num_threads = max(1, int(config.resources.extract.num_cpus))
    torch.set_num_threads(num_threads)
    logging.getLogger("vidflow.models").setLevel(logging.ERROR)  # `left` shows where r is capped
    yield f"video: {LEGEND}"
    for target in bench_targets():
        if target.device.type == "cuda" and target.dtype == torch.float32:
            continue
        yield f"video: {target}; one clip, random weights"
        yield HEADER
        for family, num_merged in MODELS.items():
            for attention in ATTENTIONS:
                recipe = VideoRecipe(family=family, weights="random:0", attention=attention)
                yield str(measure_model(recipe, num_merged, target, num_threads=num_threads))


def measure_model(
    recipe: VideoRecipe, num_merged: int, target: Target, *, num_threads: int, rounds: int = ROUNDS
) -> VideoRow:
    """Time the model without merging, with it, and the merging alone, in turns."""
    dense = _build(recipe, target)
    merged = with_reduction(dense, BlockBipartite(num_merged=num_merged))
    clip = _clip(dense)
    works: dict[str, Callable[[], object]] = {
        "dense": lambda: dense.encode(clip),
        "merged": lambda: merged.encode(clip),
        "merging": merging(merged, clip),
    }
    times = take_turns(works, target.device, rounds=rounds)
    return VideoRow(
        model=recipe.family,
        attention=recipe.attention,
        num_merged=num_merged,
        tokens_left=merged.tokens_per_block[-1],
        dense_clips_per_second=1 / median(times["dense"]),
        clips_per_second=1 / median(times["merged"]),
        speedup=ratio(times["dense"], times["merged"]),
        macs_ratio=dense.macs / merged.macs,
        merging_share=ratio(times["merging"], times["merged"]),
        dense_mib=added_mib(recipe, None, target, num_threads),
        mib=added_mib(recipe, num_merged, target, num_threads),
    )


def merging(encoder: VideoEncoder, clip: Tensor) -> Callable[[], list[ClipTokens]]:
    """Return a function that matches and merges the recorded tokens of all blocks, without running the blocks.

    The function returns what enters the MLP of each block.
    """
    recorder = _Recorder(**{field.name: getattr(encoder.walk, field.name) for field in dataclasses.fields(ClipWalk)})
    encoder.with_walk(recorder).encode(clip)
    calls = recorder.calls

    def merge() -> list[ClipTokens]:
        with torch.inference_mode():
            return [encoder.walk.reduce(*arguments) for arguments in calls]

    return merge


@dataclass(frozen=True, kw_only=True)
class _Recorder(ClipWalk):
    """Records what every block's reduction is called with."""

    calls: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)

    def reduce(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return super().reduce(*arguments)


def added_mib(recipe: VideoRecipe, num_merged: int | None, target: Target, num_threads: int) -> float:
    """Return the memory that encoding one clip adds to that of the loaded model, at its peak."""
    if target.device.type == "cuda":
        return _added_on_gpu(recipe, num_merged, target)
    # In a process of its own, whose allocator has kept no memory of other work.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_added_in_process, (recipe, num_merged, target, num_threads))


def _added_in_process(recipe: VideoRecipe, num_merged: int | None, target: Target, num_threads: int) -> float:
    torch.set_num_threads(num_threads)
    encoder = _with_merging(_build(recipe, target), num_merged)
    clip = _clip(encoder)
    # Building the model took more than encoding does; Linux lets a process forget its peak.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mib("VmRSS")
    encoder.encode(clip)
    return _status_mib("VmHWM") - before


def _status_mib(name: str) -> float:
    """Return a line of Linux's account of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def _added_on_gpu(recipe: VideoRecipe, num_merged: int | None, target: Target) -> float:
    encoder = _with_merging(_build(recipe, target), num_merged)
    torch.cuda.reset_peak_memory_stats(target.device)
    before = torch.cuda.memory_allocated(target.device)
    encoder.encode(_clip(encoder))
    return (torch.cuda.max_memory_allocated(target.device) - before) / 2**20


def _with_merging(encoder: VideoEncoder, num_merged: int | None) -> VideoEncoder:
    return encoder if num_merged is None else with_reduction(encoder, BlockBipartite(num_merged=num_merged))


def _build(recipe: VideoRecipe, target: Target) -> VideoEncoder:
    dtype: EncoderDtype = "bfloat16" if target.dtype == torch.bfloat16 else "float32"
    return build_video_encoder(recipe, device=str(target.device), dtype=dtype)


def _clip(encoder: VideoEncoder) -> Tensor:
    side = encoder.geometry.img_size
    return torch.randint(256, (1, encoder.num_frames, side, side, 3), dtype=torch.uint8, device=encoder.device)
