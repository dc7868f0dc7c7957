"""The adapter in front of a core: the identity at first, with names and a cost of its own."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vidflow.models.cores.token_adapter import TokenAdapter
from vidflow.training.learner import seeded
from vidflow.training.recipe import ModuleRecipe, build_module

RECIPE = {
    "task": "classification", "core": "gru", "embed_dim": 16, "num_layers": 1, "num_heads": 2, "num_classes": 3,
    "readout_dim": 16, "readout_heads": 2, "num_depths": 2,
}  # fmt: skip
TOKENS, PREFIX = torch.randn(2, 5, 2, 4, 16), torch.randn(2, 5, 1, 16)


def build(**changes):
    with seeded(3, 0, torch.device("cpu")):
        return build_module(ModuleRecipe(**{**RECIPE, **changes})).eval()


@torch.no_grad()
def test_at_first_it_changes_no_prediction_and_no_other_weight():
    plain, adapted = build(), build(adapter_rank=4)
    own = {name for name in adapted.state_dict() if name.startswith("token_adapter.")}
    assert own == adapted.state_dict().keys() - plain.state_dict().keys()
    assert own == {f"token_adapter.{name}" for name in ("down.weight", "down.bias", "up.weight", "up.bias")}
    assert all(torch.equal(value, adapted.state_dict()[name]) for name, value in plain.state_dict().items())
    assert torch.equal(adapted(TOKENS, PREFIX, {})["logits"], plain(TOKENS, PREFIX, {})["logits"])


@torch.no_grad()
def test_a_trained_adapter_is_x_plus_up_of_gelu_of_down_in_a_clip_and_in_a_stream():
    task = build(adapter_rank=4)
    torch.nn.init.normal_(task.token_adapter.up.weight)
    plain = build()
    mixed = plain.mix(TOKENS, PREFIX)
    adapter = task.token_adapter
    hidden = torch.nn.functional.gelu(mixed @ adapter.down.weight.T + adapter.down.bias)
    torch.testing.assert_close(task.mix(TOKENS, PREFIX), mixed + hidden @ adapter.up.weight.T + adapter.up.bias)
    whole, state = task(TOKENS, PREFIX, {})["logits"], None
    for t in range(5):
        answer, state = task.step(TOKENS[:, t], PREFIX[:, t], {}, state)
        torch.testing.assert_close(answer["logits"], whole[:, t], rtol=1e-4, atol=1e-5)


def test_at_first_only_the_way_up_has_a_gradient():
    task = build(adapter_rank=4).train()
    task(TOKENS, PREFIX, {})["logits"].square().sum().backward()
    adapter = task.token_adapter
    assert adapter.up.weight.grad.abs().sum() > 0
    assert not adapter.down.weight.grad.any()


def test_its_cost_is_what_torch_counts():
    adapter = TokenAdapter(64, 16)
    with FlopCounterMode(display=False) as counter:
        adapter(torch.randn(3, 7, 64))
    assert adapter.macs(21) == pytest.approx(counter.get_total_flops() / 2)
