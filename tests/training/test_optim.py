import math

import pytest
import torch
from torch import nn

from vidflow.models.cores.build import build_core
from vidflow.models.tasks import TaskOptions, build_task
from vidflow.training.optim import (
    autocast,
    build_optimizer,
    decayed_parameters,
    learning_rate_at,
    load_moments,
    moments,
    step_optimizer,
)


def _task(core="gated_mamba_mix", task="classification"):
    return build_task(
        task,
        build_core(core, embed_dim=16, num_layers=1),
        TaskOptions(num_depths=2, num_classes=3, image_size=16, readout_dim=16, readout_heads=2),
    )


def _names(module, parameters):
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in module.named_parameters() if id(parameter) in wanted}


def test_matrices_decay_and_biases_norms_queries_and_state_matrices_do_not():
    task = _task(task="depth")
    decayed = _names(task, decayed_parameters(task))
    exempt = {name for name, _ in task.named_parameters()} - decayed
    assert {"readout.key_proj.weight", "depth_mixing.layers.0.mlp.0.weight"} <= decayed
    assert any(name.endswith("sa_attn.in_proj_weight") for name in decayed)
    assert {"readout.query", "readout.temporal_posenc", "core.output_norm.weight"} <= exempt
    assert any(name.endswith("A_log") for name in exempt)
    assert not any("norm" in name or name.endswith("bias") or ".bn." in name for name in decayed)


def test_every_trained_parameter_is_optimized_once_and_frozen_ones_never():
    task = _task()
    task.readout.query.requires_grad_(False)
    optimizer = build_optimizer(task, weight_decay=0.1)
    optimized = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(optimized) == len({id(p) for p in optimized})
    assert {id(p) for p in optimized} == {id(p) for p in task.parameters() if p.requires_grad}
    task.readout.key_proj.requires_grad_(False)
    assert "readout.key_proj.weight" not in _names(task, decayed_parameters(task))


def test_embeddings_and_tagged_matrices_do_not_decay():
    module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    module[2].weight._no_weight_decay = True
    assert _names(module, decayed_parameters(module)) == {"1.weight"}


def test_the_learning_rate_rises_linearly_and_falls_as_half_a_cosine():
    rates = [learning_rate_at(step, num_steps=100, peak=2.0, warmup_fraction=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    for step in range(10, 100):
        assert rates[step] == pytest.approx(1.0 + math.cos(math.pi * (step - 10) / 90))
    assert max(rates) == 2.0
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_the_learning_rate_is_positive_and_within_its_peak_for_any_warm_up(fraction, num_steps):
    for step in range(num_steps):
        assert 0 < learning_rate_at(step, num_steps=num_steps, peak=0.3, warmup_fraction=fraction) <= 0.3


def test_a_step_is_no_longer_than_the_clipped_gradient_says():
    # AdamW is blind to the gradient's scale, so its first moment after one step is looked at: 0.1 times the gradient.
    layer = nn.Linear(4, 4)
    optimizer = build_optimizer(layer, weight_decay=0.0)
    (layer(torch.full((1, 4), 1e3)) ** 2).sum().backward()
    step_optimizer(optimizer, learning_rate=1e-3, grad_clip=0.5)
    squares = sum(value.square().sum() for name, value in moments(optimizer, layer).items() if name.endswith("exp_avg"))
    # clip_grad_norm_ divides by the norm plus 1e-6; single precision.
    assert squares.sqrt().item() == pytest.approx(0.1 * 0.5, rel=1e-5)
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_an_optimizer_with_its_moments_put_back_takes_the_very_same_steps():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    optimizer = build_optimizer(layer, weight_decay=0.1)
    data = torch.randn(6, 4, 8)

    def advance(module, optimizer, rows):
        for row in rows:
            (module(row) ** 2).mean().backward()
            step_optimizer(optimizer, learning_rate=1e-2, grad_clip=1.0)

    advance(layer, optimizer, data[:3])
    saved = {name: value.clone() for name, value in moments(optimizer, layer).items()}
    weights = {name: value.clone() for name, value in layer.state_dict().items()}
    advance(layer, optimizer, data[3:])

    other = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    other.load_state_dict(weights)
    resumed = build_optimizer(other, weight_decay=0.1)
    load_moments(resumed, other, saved)
    advance(other, resumed, data[3:])
    for name, value in layer.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precision_decides_the_type_of_matrix_products_on_a_cpu(precision, dtype):
    with autocast(torch.device("cpu"), precision):
        assert nn.Linear(4, 4)(torch.randn(2, 4)).dtype == dtype
