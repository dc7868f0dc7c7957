"""Thresholds of ALGM fixed from a sample."""

import pytest
import torch

from vidflow.models.encoder import build_encoder
from vidflow.models.encoder.calibration import calibrate_windows
from vidflow.models.reduction.windows import BlockWindows


def smooth_frames(batch: int, side: int) -> torch.Tensor:
    """Make frames of blurred noise, whose neighbouring patches are alike here and there."""
    noise = torch.rand(batch, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    frames = torch.nn.functional.interpolate(noise, size=(side, side), mode="bicubic")
    return (frames.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)


def build(reduction: BlockWindows | None = None) -> object:
    return build_encoder(name="vit_tiny_patch16_224", weights="random:0", img_size=128, reduction=reduction)


@pytest.mark.parametrize("fraction", [0.3, 0.6])
def test_the_wanted_share_merges_on_the_sample(fraction: float) -> None:
    frames = smooth_frames(12, 128)
    reducer = calibrate_windows(build(), frames, fraction=fraction, frames_per_batch=5)  # type: ignore[arg-type]
    encoded = build(reducer)(frames)  # type: ignore[operator]
    # 64 patches in windows of 4, then half of what is left may go: the mean over frames, to a token or so.
    after_windows = 64 - 3 * 16 * fraction
    wanted = after_windows * (1 - fraction / 2)
    assert float(encoded.counts.float().mean()) == pytest.approx(wanted, abs=1.5)
    assert len(encoded.counts.unique()) > 1


def test_the_published_rule_needs_no_number() -> None:
    reducer = calibrate_windows(build(), smooth_frames(4, 128))  # type: ignore[arg-type]
    assert -1 < reducer.local_threshold < 1
    assert reducer.global_threshold is not None
    assert -1 < reducer.global_threshold <= 1


def test_the_thresholds_do_not_depend_on_how_the_sample_is_batched() -> None:
    frames = smooth_frames(6, 128)
    whole, split = (calibrate_windows(build(), frames, frames_per_batch=size) for size in (6, 1))  # type: ignore[arg-type]
    # Float32 features of other batch sizes.
    assert whole.local_threshold == pytest.approx(split.local_threshold, abs=1e-5)
    assert whole.global_threshold == pytest.approx(split.global_threshold, abs=1e-4)
