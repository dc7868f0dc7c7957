import math

import pytest
import torch
from torch import nn

from vidflow.models.cores.build import build_core
from vidflow.models.cores.mamba import MambaMixer


def slow_mixer(mixer: MambaMixer, sequence: torch.Tensor) -> torch.Tensor:
    """Mamba-1 on one sequence (T, D), number by number over channels, as the equations are written."""
    inner = mixer.D.numel()
    weights = mixer.conv1d.weight[:, 0]
    rates = -mixer.A_log.exp()
    hidden, past, outputs = torch.zeros(inner, mixer.state_dim), [torch.zeros(inner)] * 3, []
    for token in sequence:
        x, z = (mixer.in_proj.weight @ token).split(inner)
        past = [*past[-3:], x]
        conv = mixer.conv1d.bias + sum(weights[:, k] * past[k] for k in range(4))
        conv = conv * torch.sigmoid(conv)
        projected = mixer.x_proj.weight @ conv
        low_rank, b, c = projected.split([mixer.rank, mixer.state_dim, mixer.state_dim])
        delta = torch.log1p(torch.exp(mixer.dt_proj.weight @ low_rank + mixer.dt_proj.bias))
        hidden = torch.exp(delta[:, None] * rates) * hidden + (delta * conv)[:, None] * b
        y = hidden @ c + mixer.D * conv
        outputs.append(mixer.out_proj.weight @ (y * z * torch.sigmoid(z)))
    return torch.stack(outputs)


@torch.no_grad()
def test_the_mixer_is_what_the_equations_say():
    torch.manual_seed(0)
    mixer, tokens = MambaMixer(12, 5), torch.randn(3, 6, 12)
    for parameter in mixer.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    expected = torch.stack([slow_mixer(mixer, sequence) for sequence in tokens])
    torch.testing.assert_close(mixer(tokens, None)[0], expected, rtol=1e-4, atol=1e-5)


def test_parameters_start_as_published():
    torch.manual_seed(0)
    mixer = MambaMixer(384, 16)
    assert mixer.rank == 24
    torch.testing.assert_close(mixer.A_log.exp()[7], torch.arange(1.0, 17.0))
    assert (mixer.D == 1).all()
    delta = nn.functional.softplus(mixer.dt_proj.bias)
    assert delta.min() >= 1e-3 * (1 - 1e-3)
    assert delta.max() <= 1e-1 * (1 + 1e-3)
    # Log-uniform: the median of 768 draws is near the geometric middle of the range.
    assert math.isclose(delta.median().log10().item(), -2.0, abs_tol=0.15)
    assert mixer.dt_proj.weight.abs().max() <= 24**-0.5


def test_only_rates_and_skip_are_tagged_as_not_decayed():
    core = build_core("gated_mamba_mix", embed_dim=16, num_layers=1, num_heads=2)
    tagged = {name for name, value in core.named_parameters() if getattr(value, "_no_weight_decay", False)}
    assert tagged == {"mamba_blocks.0.mamba.A_log", "mamba_blocks.0.mamba.D"}


@torch.no_grad()
def test_under_autocast_the_state_stays_in_single_precision():
    torch.manual_seed(0)
    core, tokens = build_core("mamba", embed_dim=16, num_layers=1).eval(), torch.randn(1, 4, 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, (_, hidden) = core(tokens)
    assert hidden.dtype == torch.float32
    # bfloat16 keeps 8 bits; outputs are of order one after the norm.
    torch.testing.assert_close(output.float(), core(tokens)[0], rtol=0.1, atol=0.1)


@torch.no_grad()
def test_a_gate_that_is_shut_leaves_only_the_spatial_blocks():
    torch.manual_seed(0)
    core = build_core("gated_mamba_mix", embed_dim=16, num_layers=2, num_heads=2).eval()
    for gate in core.gates:
        gate.weight.zero_()
        gate.bias.fill_(-100.0)
    tokens = torch.randn(2, 3, 4, 16)
    expected = tokens
    for block in core.spatial_blocks:
        expected = block(expected)
    torch.testing.assert_close(core(tokens)[0], core.output_norm(expected))


@torch.no_grad()
def test_mamba_alone_does_not_mix_tokens_and_the_mixed_cores_do():
    torch.manual_seed(0)
    tokens = torch.randn(1, 3, 4, 16)
    changed = tokens.clone()
    changed[:, 0, 0] = torch.randn(16)
    for name, mixes in (("mamba", False), ("mamba_mix", True), ("gated_mamba_mix", True)):
        core = build_core(name, embed_dim=16, num_layers=1, num_heads=2).eval()
        assert torch.equal(core(tokens)[0][:, :, 1:], core(changed)[0][:, :, 1:]) is not mixes


@pytest.mark.parametrize(("unit", "is_same"), [("clip", True), ("frame", False)])
@torch.no_grad()
def test_stochastic_depth_drops_whole_clips_or_single_frames(unit, is_same):
    torch.manual_seed(0)
    core = build_core("mamba_mix", embed_dim=16, num_layers=1, num_heads=2, dropout=0.0, drop_path=0.5, drop_unit=unit)
    frame = torch.randn(1, 1, 4, 16).expand(8, 6, -1, -1)
    block = core.spatial_blocks[0].train()
    changes = (block(frame) - frame).flatten(2)
    # Every frame of a clip is the same picture, so its frames differ only where they were dropped differently.
    per_clip = [torch.allclose(clip, clip[:1].expand_as(clip), atol=1e-5) for clip in changes]
    assert all(per_clip) is is_same
    assert not torch.allclose(changes[:1].expand_as(changes), changes, atol=1e-5)


@pytest.mark.gpu
@torch.no_grad()
def test_the_kernel_equals_the_plain_scan():
    pytest.importorskip("mamba_ssm", reason="the optional CUDA kernels are not installed")
    torch.manual_seed(0)
    core, tokens = build_core("mamba", embed_dim=64).eval(), torch.randn(2, 8, 5, 64)
    plain, state = core(tokens)
    fast, fast_state = core.cuda()(tokens.cuda())
    torch.testing.assert_close(fast.cpu(), plain, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(tuple(part.cpu() for part in fast_state), state, rtol=1e-3, atol=1e-4)
