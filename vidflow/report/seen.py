"""What the best trial sees of a clip: the patches that its features merged, or where its readout reads.

Axes: T frames, H and W pixels, N patches, P prefix tokens, L = P + N tokens of the core, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8

from vidflow.models.tasks import Task
from vidflow.models.tasks.readouts import AttentionReadout
from vidflow.records import ClipTokens, TrialResult
from vidflow.report.pareto import MergedClip, for_all_frames, tint_tokens
from vidflow.store.features import FeatureReader
from vidflow.training.batches import core_tokens
from vidflow.training.feeds import Clips
from vidflow.training.trained_task import load_task

NUM_CLIPS = 3
_DIMMED = 0.25  # brightness of a patch that is not read at all


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Pictures of what the best trial sees.

    Attributes:
        kind: `merged` for the patches that share a token, `read` for the readout's attention.
        clips: The clips, each with a row of frames and a row of pictures.
        prefix_share: Part of the attention that goes to prefix tokens, which have no place; 0 for `merged`.
    """

    kind: Literal["merged", "read"]
    clips: Sequence[MergedClip]
    prefix_share: float = 0.0


def picture_seen(
    best: TrialResult,
    reader: Clips,
    keys: Sequence[str],
    frames_of: Callable[[str], UInt8[np.ndarray, "T H W 3"]],
) -> Seen | None:
    """Return pictures of the first of these clips; None if the trial merges nothing and reads without attention.

    Also None if the tokens that its task reads are not stored.

    Args:
        best: The trial.
        reader: Its feature set.
        keys: Clips to show.
        frames_of: Gives a clip's frames by its key.
    """
    if not isinstance(reader, FeatureReader) or best.settings.get("feed", "features") != "features":
        return None
    clips = [reader[reader.keys.index(key)] for key in keys[:NUM_CLIPS]]
    height, width = reader.metadata["grid"]
    assignments = [clip.assignment[:, -1] for clip in clips if clip.assignment is not None]
    if assignments:
        shown = [frames_of(clip.key) for clip in clips]
        pictures = [
            (frames, tint_tokens(frames, for_all_frames(each, len(frames)), (height, width)))
            for frames, each in zip(shown, assignments, strict=True)
        ]
        return Seen(kind="merged", clips=_pair(clips, pictures, "patches that share a token"))
    if best.best is None or best.settings["task"] != "classification" or not clips:
        return None
    if best.settings.get("readout", "attention") != "attention":
        return None
    task = load_task(best.directory)
    weights = [attention_of(task, clip) for clip in clips]
    num_patches = height * width
    if any(each.shape[1] < num_patches for each in weights):
        return None  # the core reads fewer tokens than patches, and nothing says which patch is in which
    lit = []
    for clip, each in zip(clips, weights, strict=True):
        frames = frames_of(clip.key)
        shares = for_all_frames(each[:, -num_patches:], len(frames))
        lit.append((frames, light_up(frames, shares.reshape(-1, height, width))))
    prefix_share = float(np.mean([each[:, :-num_patches].sum(axis=1).mean() for each in weights]))
    return Seen(kind="read", clips=_pair(clips, lit, "where it is read"), prefix_share=prefix_share)


def attention_of(task: Task, clip: ClipTokens) -> Float[np.ndarray, "T L"]:
    """Return how much the answer after each frame weighs each token of the core, mean over heads; rows sum to one."""
    readout = task.readout
    assert isinstance(readout, AttentionReadout)
    tokens = torch.from_numpy(core_tokens(clip, task.num_depths, unmerged=task.unmerges).astype(np.float32))[None]
    prefix = torch.from_numpy(clip.prefix.astype(np.float32))[None] if clip.prefix.shape[1] else None
    with torch.inference_mode():
        features, _ = task.core(task.mix(tokens, prefix))
        weights = readout.attention(features.flatten(0, 1)[:, None])
    mean: Float[np.ndarray, "T L"] = weights.mean(dim=(1, 2)).numpy()
    return mean


def light_up(frames: UInt8[np.ndarray, "T H W 3"], weights: Float[np.ndarray, "T h w"]) -> UInt8[np.ndarray, "T H W 3"]:
    """Return the frames, the brighter the larger a patch's weight; the patch with the clip's largest is unchanged."""
    height, width = frames.shape[1:3]
    rows = np.arange(height) * weights.shape[1] // height
    columns = np.arange(width) * weights.shape[2] // width
    share = (weights / weights.max())[:, rows][:, :, columns, None]
    lit: UInt8[np.ndarray, "T H W 3"] = np.rint(frames * (_DIMMED + (1 - _DIMMED) * share)).astype(np.uint8)
    return lit


def _pair(
    clips: Sequence[ClipTokens], pictures: Sequence[tuple[np.ndarray, np.ndarray]], name: str
) -> list[MergedClip]:
    return [
        MergedClip(key=clip.key, rows=(("frames", frames), (name, picture)))
        for clip, (frames, picture) in zip(clips, pictures, strict=True)
    ]
