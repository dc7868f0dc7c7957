"""InTI, reconstructed: convex combinations of pairs, counts and costs, independence."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_adapted_encoder import T, adapt, build_vit, clips, freeze, joined
from test_merged_weights import SMALL, all_tokens, load, merge, merged_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vidflow.config.schema import Adaptation, Config, FeatureSet, Sampling, Trial, Video
from vidflow.models.encoder import shape_of, skeleton
from vidflow.models.encoder.adapted.cost import count_adapted_macs
from vidflow.models.encoder.inti_reconstructed import IntiReconstructed, count_pair_macs
from vidflow.models.reduction.build import build_reducer
from vidflow.models.reduction.reducer import PostReducer
from vidflow.records import ClipTokens
from vidflow.stages.cost import frame_macs, trial_macs
from vidflow.stages.reduce import reduce_clip


def layer(*, trained: bool = True, grid: tuple[int, int] = (3, 4), width: int = 32) -> IntiReconstructed:
    torch.manual_seed(0)
    made = IntiReconstructed(width, grid=grid, num_prefix=2)
    for parameter in made.parameters() if trained else ():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return made


def tokens(num_frames: int = 4, *, grid: tuple[int, int] = (3, 4), width: int = 32) -> Tensor:
    shape = (2, num_frames, 2 + grid[0] * grid[1], width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_at_the_start_a_pair_becomes_its_mean_exactly() -> None:
    clip = tokens()
    assert torch.equal(layer(trained=False)(clip), (clip[:, 0::2] + clip[:, 1::2]) / 2)


def test_weights_are_convex_and_equal_frames_stay_whatever_they_are() -> None:
    made, clip = layer(), tokens()
    weights = made.weights(clip[:, 0::2], clip[:, 1::2])
    assert bool(((weights - 0.5).abs() > 0.1).any())
    assert bool(((weights >= 0) & (weights <= 1)).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 14))
    same = clip[:, :1].expand(-1, 4, -1, -1)
    torch.testing.assert_close(made(same), same[:, :2], atol=1e-6, rtol=1e-6)
    odd = tokens(3)
    torch.testing.assert_close(made(odd)[:, -1], odd[:, -1], atol=1e-6, rtol=1e-6)


def test_a_pair_depends_on_its_own_frames_only_and_each_place_on_its_own_tokens() -> None:
    made, clip = layer(), tokens(6)
    other = clip.clone()
    other[0, 2] += 1
    moved = (made(clip) != made(other)).flatten(2).any(2)
    assert moved.tolist() == [[False, True, False], [False, False, False]]
    joint = made(clip)
    weights = made.weights(clip[:, 0::2], clip[:, 1::2])
    torch.testing.assert_close(joint, weights[..., :1] * clip[:, 0::2] + weights[..., 1:] * clip[:, 1::2])


def test_frames_are_halved_per_use_and_a_still_clip_gives_the_image_encoder() -> None:
    frozen = freeze(build_vit("vit_small_patch14_reg4_dinov2"))
    encoder = adapt(frozen, places=[], temporal_embedding=False, interpolate_after=[1, 2])
    for layers in encoder.inti_layers().values():
        torch.nn.init.normal_(layers.weigh.weight)
    for num_frames, left in ((8, 2), (7, 2), (5, 2), (4, 1), (1, 1)):
        frames = clips(frozen, num_frames=num_frames)
        assert joined(encoder, frames).shape[1] == left == len(encoder.output_frames(num_frames))
    assert encoder.output_frames(7) == [3, 6]
    still = clips(frozen, num_frames=1).expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(joined(encoder, still), all_tokens(frozen, still[:, :1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "after", "saved"),
    [("vit_large_patch14_clip_224", [9, 18], 0.374), ("vit_base_patch16_clip_224", [5, 8], 0.371)],
)
def test_default_places_save_37_percent(name: str, after: list[int], saved: float) -> None:
    shape = shape_of(skeleton(name, 224))
    cost = count_adapted_macs(shape, Adaptation(interpolate_after=after), num_frames=32)
    assert 1 - cost / count_adapted_macs(shape, None, num_frames=32) == pytest.approx(saved, abs=5e-4)


def test_the_counted_cost_is_that_of_the_layer() -> None:
    made = layer(grid=(14, 14), width=192)
    with FlopCounterMode(display=False) as counter:
        made(tokens(2, grid=(14, 14), width=192))
    # The counter leaves out the combination of the two frames and knows the convolutions.
    counted = count_pair_macs(192, num_patches=196, num_prefix=2) - 2 * 198 * 192
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(counted, rel=0.01)


def test_a_merged_file_keeps_the_layers_and_encodes_fewer_frames(tmp_path) -> None:  # type: ignore[no-untyped-def]
    trained, path = merged_file(tmp_path, interpolate_after=[4, 8])
    encoder = load(path)
    frames = clips(encoder, batch=2)
    encoded = encoder.encode(frames)
    assert encoder.output_frames(T) == [3, 4]
    assert [clip.counts.shape for clip in encoded.clips()] == [(2, 1)] * 2
    torch.testing.assert_close(all_tokens(encoder, frames), joined(trained, frames), atol=1e-5, rtol=1e-4)
    # Its cost, in the plan and the report, is that of the adapted encoder.
    shape, settings = shape_of(skeleton(SMALL.name, 32)), replace(SMALL, weights=str(path))
    cost = count_adapted_macs(shape, Adaptation(interpolate_after=[4, 8]), num_frames=T)
    metadata = {"encoder": encoder.describe(), "num_frames": T}
    assert frame_macs(settings, FeatureSet(), np.full(2, 4), metadata) == cost / T
    assert cost < count_adapted_macs(shape, None, num_frames=T)
    config = Config(encoder=settings, video=Video(sampling=Sampling(num_frames=T)), features={"base": FeatureSet()})
    assert trial_macs(config, Trial(feed="shards", features="base")).forward == cost


@pytest.mark.parametrize("num_frames", [4, 5])
def test_its_controls_store_as_many_tokens_in_as_many_bytes(num_frames: int) -> None:
    frozen = freeze(build_vit("vit_tiny_patch16_224"))
    frames = clips(frozen, batch=1, num_frames=num_frames)
    encoder = merge(adapt(frozen, temporal_embedding=False, interpolate_after=[1]))
    (ours,), (plain,) = (each.encode(frames).clips() for each in (encoder, frozen))
    assert ours.counts.sum() == 4 * math.ceil(num_frames / 2)
    pts, none = np.arange(num_frames, dtype=np.float64), {"sizes": None, "assignment": None, "annotations": b""}
    dense = ClipTokens(
        key="0" * 16, label=0, split="val", pts_seconds=pts,
        tokens=plain.tokens, prefix=plain.prefix, counts=plain.counts, **none,
    )  # fmt: skip
    for name, settings in (("pool", {"window": (2, 1, 1)}), ("fewer_frames", {"stride": 2})):
        control = build_reducer(name, place="post", **settings)
        assert isinstance(control, PostReducer)
        reduced = reduce_clip(control, dense, height=2, width=2)
        assert reduced.counts.sum() == ours.counts.sum()
        assert reduced.tokens.nbytes == ours.tokens.nbytes
        assert reduced.sizes is not None
        assert reduced.sizes.sum() == 4 * num_frames
