"""The video group on a tiny model: what is timed is what the encoder does."""

import pytest
import torch

from pipelines.bench.clock import bench_targets
from pipelines.bench.video import measure_model, merging
from tests.models.encoder.video.tiny import clips_for, tiny_classifier
from vidflow.models.encoder.video import VideoRecipe, with_reduction
from vidflow.models.reduction.build import build_reducer


def test_the_merging_that_is_timed_alone_calls_every_blocks_reduction() -> None:
    encoder = with_reduction(tiny_classifier("vivit"), build_reducer("tome", num_merged=6))
    clip = clips_for(encoder, 1)
    states = merging(encoder, clip)()
    wanted = encoder.encode(clip)
    assert len(states) == encoder.model.shape.depth
    assert torch.equal(states[-1].sizes, wanted.sizes)
    assert torch.equal(states[-1].assignment, wanted.assignment)


@pytest.mark.slow
def test_a_row_holds_consistent_figures() -> None:
    recipe = VideoRecipe(family="videomae", weights="random:0", size="tiny")
    row = measure_model(recipe, 6, bench_targets()[0], num_threads=1, rounds=1)
    assert row.tokens_left == 36 - 3 * 6
    assert row.macs_ratio > 1
    assert min(row.dense_clips_per_second, row.clips_per_second, *row.merging_share, row.dense_mib + 1) > 0
    assert len(str(row).split()) == 15
