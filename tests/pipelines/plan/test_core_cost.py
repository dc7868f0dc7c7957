"""What the plan says of VTM and of the adapter is what torch counts of the trial's own modules."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipelines.plan.command import _name_kind
from pipelines.plan.core_cost import core_macs
from pipelines.plan.table import _describe_core
from vidflow.config.schema import Adaptation, Config, Encoder, Sampling, Trial, Video
from vidflow.training.recipe import build_module, make_recipe

CONFIG = Config(
    encoder=Encoder(name="test_vit", weights="random:0", img_size=96),
    video=Video(size=96, sampling=Sampling(num_frames=8)),
    adaptations={"inti": Adaptation(interpolate_after=[1])},
)


def counted(trial: Trial, num_frames: int, num_tokens: int) -> int:
    recipe = make_recipe(trial, embed_dim=64, num_depths=1, num_classes=2, image_size=96)
    task = build_module(recipe).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        task.core(task.mix(torch.randn(1, num_frames, 1, num_tokens, 64), None))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("trial", "frames", "tokens", "stored"),
    [
        (Trial(core="vtm"), 8, 37, None),
        (Trial(core="vtm", vtm_groups=(2, 4, 4), vtm_factor=3, vtm_share=0.8, token_adapter=0.25), 8, 37, None),
        (Trial(core="vtm", unmerge=False), 8, 10, 9.0),
        (Trial(core="vtm", feed="shards", adaptation="inti"), 4, 37, None),
    ],
)
def test_vtm_and_the_adapter_cost_what_torch_counts(trial, frames, tokens, stored):
    macs = core_macs(CONFIG, trial, stored_tokens=stored)
    assert macs.vtm + macs.adapter == pytest.approx(counted(trial, frames, tokens), rel=0.01)
    assert macs.vtm_tokens[0] == frames * tokens > macs.vtm_tokens[1] > 0


def test_an_adapter_alone_is_counted_and_a_plain_core_is_not():
    macs = core_macs(CONFIG, Trial(core="mean", token_adapter=0.5), stored_tokens=None)
    assert macs.adapter == counted(Trial(core="mean", token_adapter=0.5), 8, 37)
    assert _describe_core(macs) == "adapter: 0.00121 GMACs per clip"
    assert core_macs(CONFIG, Trial(core="mean"), stored_tokens=None) is None
    merged = core_macs(CONFIG, Trial(core="vtm"), stored_tokens=None)
    assert _describe_core(merged) == f"vtm: {merged.vtm / 1e9:.3g} GMACs per clip, 296 tokens become 2"


def test_trials_that_cost_something_else_have_another_name():
    trials = [
        Trial(core="vtm"),
        Trial(core="vtm", vtm_factor=2),
        Trial(core="gru"),
        Trial(core="gru", token_adapter=0.5),
    ]
    trials += [Trial(core="gru", train_fraction=0.1), Trial(core="gru", train_fraction=0.1, feed="shards")]
    assert len({_name_kind(trial) for trial in trials}) == len(trials)
    assert _name_kind(trials[-1]) == "gru, 0.1 of the videos on shards"
