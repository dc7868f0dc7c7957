"""Counted costs of feature sets against torch's own counter, and what must hold between reducers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidflow.config.schema import Adaptation, Config, Encoder, FeatureSet, Resources, Sampling, Trial, Video
from vidflow.models.encoder import build_encoder, shape_of, skeleton
from vidflow.models.reduction.build import build_reducer
from vidflow.models.reduction.macs import count_macs
from vidflow.stages.cost import describe_reducer, encoder_macs, trial_macs

SIDE, T = 96, 4
SHAPE = shape_of(skeleton("test_vit", SIDE))
FULL = np.full(T, 36)


def macs(name: str, counts: np.ndarray = FULL, depths: tuple[int, ...] = (-1,), **settings: Any) -> float:
    found = encoder_macs(SHAPE, build_reducer(name, **settings), depths=depths, counts=counts)
    assert found is not None
    return found


def counted(name: str, depths: list[int], **settings: Any) -> tuple[float, np.ndarray]:
    """Return what torch counts per frame, and the tokens that were kept of each."""
    encoder = build_encoder(
        name="test_vit", weights="random:0", img_size=SIDE, depths=depths, reduction=build_reducer(name, **settings)
    )
    frames = torch.randint(0, 255, (T, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # Torch counts the unfused kernel on a CPU, not the fused one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoded = encoder(frames, num_frames=T)
    counts = np.full(T, encoded.tokens.shape[2]) if encoded.counts is None else encoded.counts[:, -1].numpy()
    return counter.get_total_flops() / 2 / T, counts


@pytest.mark.parametrize(
    ("name", "depths", "settings"),
    [
        ("none", [1], {}),
        ("none", [0, 5], {}),
        ("tome", [1], {"num_merged": [9, 9]}),
        ("tome", [5], {"keep": 0.5, "schedule": "decreasing"}),
        ("tome", [3], {"num_merged": 5, "metric": "tokens"}),
        ("random_merge", [1], {"num_merged": [18, 9]}),
        ("vidtldr", [3], {"num_merged": [9, 9]}),
        ("algm", [3], {"local_threshold": -1.0}),
        ("fewer_frames", [1], {"stride": 2}),
        ("lower_resolution", [1], {"keep": 0.25}),
        ("evs", [1], {"prune": 0.5}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_count_agrees_with_torchs_counter(name: str, depths: list[int], settings: dict[str, Any]) -> None:
    wanted, counts = counted(name, depths, **settings)
    # 8%: the encoder is so narrow (D = 64, heads of 32) that the eight channels which carry sizes through attention,
    # and the padding of frames that keep fewer patches than their neighbours, show; both are left out of the count.
    assert macs(name, counts, tuple(depths), **settings) == pytest.approx(wanted, rel=0.08)


def test_a_reducer_of_cached_tokens_costs_the_encoder_nothing_less() -> None:
    assert (
        macs("density_peaks", np.full(T, 9), keep=0.25) == macs("none") == count_macs(SHAPE, [36] * (SHAPE.depth + 1))
    )


def test_fewer_tokens_and_fewer_blocks_cost_less() -> None:
    merged = [macs("tome", num_merged=number) for number in (0, 2, 4, 6)]
    assert merged == sorted(merged, reverse=True)
    assert merged[0] == macs("none")
    assert macs("none", depths=(1,)) < macs("none", depths=(1, 4)) == macs("none", depths=(-2,))


def test_chance_saves_the_matching() -> None:
    assert macs("random_merge", num_merged=4) < macs("tome", num_merged=4)


def test_a_frame_of_which_nothing_is_kept_is_not_encoded() -> None:
    assert macs("fewer_frames", np.array([36, 0, 36, 0]), stride=2) == macs("none") / 2


def test_a_cost_that_hangs_on_what_is_not_recorded_is_unknown() -> None:
    reducer = build_reducer("algm", global_threshold=0.9)
    assert encoder_macs(SHAPE, reducer, depths=[-1], counts=FULL) is None


def test_a_reducer_is_named_with_its_settings() -> None:
    assert describe_reducer("tome", None, {"num_merged": [9, 9]}) == "tome, num_merged [9, 9]"
    assert describe_reducer("tome", "post", {"keep": 0.5}) == "tome, place post, keep 0.5"


def test_a_trial_on_frames_costs_what_was_published_forward_and_two_and_a_half_times_that_in_training():
    config = Config(
        encoder=Encoder(name="vit_base_patch16_clip_quickgelu_224.openai"),
        video=Video(sampling=Sampling(num_frames=8)),
        features={"base": FeatureSet(), "stream": FeatureSet(depths=[5], normalize=False)},
        adaptations={"all": Adaptation(), "upper": Adaptation(first_block=6)},
        resources=Resources(),
    )
    whole = trial_macs(config, Trial(feed="shards", adaptation="all"))
    # ZeroI2V, three views of 8 frames, ViT-B/16: 422 GFLOPs as papers count them, which are multiply-accumulates.
    assert 3 * whole.forward / 1e9 == pytest.approx(422, rel=0.01)
    assert whole.training / whole.forward == pytest.approx(2.5, rel=0.01)
    half = trial_macs(config, Trial(feed="prefix", features="stream", adaptation="upper"))
    assert half.forward == pytest.approx(whole.forward / 2, rel=0.02)
    assert half.training == pytest.approx(2.5 * half.forward)
    upper = trial_macs(config, Trial(feed="shards", adaptation="upper"))
    assert upper.training == pytest.approx(half.training + whole.forward - half.forward)
    frozen = trial_macs(config, Trial(feed="shards"))
    assert frozen.training == frozen.forward == whole.forward
    assert trial_macs(config, Trial()) is None
