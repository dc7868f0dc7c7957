"""VTM against a slow implementation in loops, and what must hold of its groups, draws, gradients and costs."""

import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, layer_norm
from torch.utils.flop_counter import FlopCounterMode

from vidflow.errors import VidflowError
from vidflow.models.clip_draws import clip_draws
from vidflow.models.cores.vtm import VtmCore, VtmSettings, fit_groups
from vidflow.models.cores.vtm_block import VtmBlock, average_rows, group_tokens

WIDTH, HEADS = 16, 2


def make(*, seed: int = 0, dropout: float = 0.0, **settings) -> VtmCore:
    torch.manual_seed(seed)
    return VtmCore(WIDTH, HEADS, VtmSettings(**settings), dropout=dropout).double().eval()


def draw(batch: int, frames: int, tokens: int, *, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, tokens, WIDTH, generator=generator, dtype=torch.float64)


def generators(*seeds: int):
    return lambda purpose: [np.random.default_rng([len(purpose), seed]) for seed in seeds]


# The same in loops: one group, one head and one token at a time.


def slow_attention(x, weights, proj, saliency):
    head = x.shape[-1] // HEADS
    query, key, value = (x @ weight.T + bias for weight, bias in weights)
    out = []
    for i in range(len(x)):
        heads = []
        for h in range(HEADS):
            part = slice(h * head, (h + 1) * head)
            logits = [(query[i, part] @ key[j, part] + saliency[j]) / math.sqrt(head) for j in range(len(x))]
            shares = torch.stack(logits).exp()
            heads.append(sum(shares[j] / shares.sum() * value[j, part] for j in range(len(x))))
        out.append(proj(torch.cat(heads)))
    return torch.stack(out), key


def thirds(linear):
    return list(zip(linear.weight.chunk(3), linear.bias.chunk(3), strict=True))


def slow_block(block: VtmBlock, x, aux, noise, *, factor, share):
    normed = block.attn_norm(x)
    attended, key = slow_attention(normed, thirds(block.qkv), block.proj, torch.zeros(len(x)))
    saliency = torch.stack([torch.tanh(k @ block.saliency.weight[0]) for k in key])
    # A draw without replacement, one target at a time: the largest of S + Gumbel noise among those that are left.
    left, targets = list(range(len(x))), []
    for _ in range(-(-len(x) // factor)):
        targets.append(max(left, key=lambda i: float(saliency[i]) + noise[i]))
        left.remove(targets[-1])

    def cosine(i, j):
        return float(key[i] @ key[j] / (key[i].norm() * key[j].norm()))

    nearest = {i: max(targets, key=lambda j: cosine(i, j)) for i in left}
    by_cosine = sorted(left, key=lambda i: cosine(i, nearest[i]))
    num_merged = round(share * len(left))
    merged = by_cosine[len(left) - num_merged :]
    groups = [[i, *(j for j in merged if nearest[j] == i)] for i in sorted(targets)]
    groups += [[i] for i in by_cosine[: len(left) - num_merged]]

    def narrow(tokens):
        norm = block.narrow_norm
        return gelu(block.narrow(layer_norm(tokens, tokens.shape[-1:], norm.weight, norm.bias)))

    x = torch.stack([(x + attended)[group].mean(0) for group in groups])
    if aux is None:
        return narrow(x), None
    attended, _ = slow_attention(block.attn_norm(aux), thirds(block.aux_qkv), block.proj, saliency)
    aux = torch.stack([(aux + attended)[group].mean(0) for group in groups])
    return narrow(x + aux), narrow(aux)


def slow_clip(core: VtmCore, tokens, groups, uniform, *, factor, share):
    """Return the outputs of one clip (T, N, D); `uniform` is None in evaluation."""
    parts = [(frame, None if uniform is None else frame) for frame in tokens]
    before, used = 1, 0
    for block, length in zip(core.blocks, groups, strict=True):
        several, after = length // before, []
        for start in range(0, len(parts), several):
            joined = parts[start : start + several]
            x = torch.cat([part for part, _ in joined])
            aux = None if uniform is None else torch.cat([part for _, part in joined])
            noise = [0.0] * len(x)
            if uniform is not None:
                noise = [-math.log(-math.log(float(each))) for each in uniform[used : used + len(x)]]
                used += len(x)
            after.append(slow_block(block, x, aux, noise, factor=factor, share=share))
        parts, before = after, length
    means = torch.stack([x.mean(0) for x, _ in parts])
    return torch.stack([core.output_norm(means[: end + 1].mean(0)) for end in range(len(means))])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("groups", "factor", "share"), [((1, 2, 4), 2, 1.0), ((2, 4, 4), 3, 0.8), ((1, 1, 1), 2, 0.5), ((2, 2, 4), 6, 1.0)]
)
def test_it_is_what_loops_over_groups_heads_and_tokens_compute(training, groups, factor, share):
    core = make(groups=groups, factor=factor, share=share).train(training)
    tokens = draw(2, 4, 5)
    with torch.no_grad(), clip_draws(generators(3, 4)):
        outputs, _ = core(tokens)
        for row, seed in enumerate((3, 4)):
            uniform = generators(seed)("vtm")[0].random(10_000, dtype=np.float32) if training else None
            wanted = slow_clip(core, tokens[row], groups, uniform, factor=factor, share=share)
            # Double precision, but the noise is single: it only decides an order.
            torch.testing.assert_close(outputs[row, :, 0], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("tokens", "factor", "left"), [(36, 6, 6), (37, 6, 7), (5, 6, 1), (12, 1, 12)])
def test_a_group_of_n_tokens_leaves_n_over_g(tokens, factor, left):
    settings = VtmSettings(factor=factor)
    rows = group_tokens(torch.randn(3, tokens), torch.randn(3, tokens, 8), settings)
    assert settings.num_left(tokens) == settings.num_targets(tokens) == left
    assert [row.unique().tolist() for row in rows] == [list(range(left))] * 3


def test_the_rest_of_the_sources_stays_if_a_share_is_merged():
    settings = VtmSettings(factor=6, share=0.8)
    # 6 targets of 36 tokens; of 30 sources 24 are merged.
    assert settings.num_left(36) == 12
    sizes = torch.stack([row.bincount() for row in group_tokens(torch.randn(4, 36), torch.randn(4, 36, 8), settings)])
    assert (sizes[:, 6:] == 1).all()
    assert (sizes.sum(1) == 36).all()


def test_a_factor_of_one_changes_nothing():
    x, settings = draw(3, 1, 7)[:, 0], VtmSettings(factor=1)
    rows = group_tokens(torch.randn(3, 7), x, settings)
    assert torch.equal(average_rows(x, rows, settings.num_left(7)), x)


def test_a_mean_is_plain_whatever_tokens_stand_for():
    x = torch.tensor([[[0.0], [1.0], [5.0]]])
    assert average_rows(x, torch.tensor([[0, 0, 1]]), 2).flatten().tolist() == [0.5, 5.0]


def test_targets_are_drawn_without_replacement_with_probabilities_softmax_of_the_saliency():
    saliency, count = torch.tensor([1.0, -1.0, 0.2, 0.5]), 20_000
    uniform = torch.rand(count, 4, generator=torch.Generator().manual_seed(0))
    # If nothing is merged, targets have the first rows.
    settings = VtmSettings(factor=2, share=0.0)
    rows = group_tokens(saliency - torch.log(-torch.log(uniform)), torch.ones(count, 4, 1), settings)
    drawn = (rows < 2).float().mean(0)
    share = saliency.softmax(0).tolist()
    wanted = [share[i] + sum(share[j] * share[i] / (1 - share[j]) for j in range(4) if j != i) for i in range(4)]
    # Deviation of a share among 20,000 draws: 0.0035 at most.
    torch.testing.assert_close(drawn, torch.tensor(wanted), rtol=0, atol=0.015)


def test_the_saliency_learns_through_the_second_path_only_and_not_at_all_in_evaluation():
    core, tokens = make().train(), draw(2, 4, 6)
    core(tokens)[0].square().sum().backward()
    for block in core.blocks:
        assert block.saliency.weight.grad.abs().sum() > 0
        assert block.aux_qkv.weight.grad.abs().sum() > 0
    block = core.blocks[0]
    core.zero_grad(set_to_none=True)
    block(tokens.flatten(1, 2), None, torch.zeros(2, 24, dtype=torch.float64))[0].square().sum().backward()
    assert block.saliency.weight.grad is None
    core.eval()(tokens)[0].square().sum().backward()
    assert all(block.saliency.weight.grad is None and block.aux_qkv.weight.grad is None for block in core.blocks)


@torch.no_grad()
def test_evaluation_draws_nothing_and_a_draw_depends_on_the_clip_alone():
    core, tokens = make(), draw(3, 6, 8)
    torch.manual_seed(1)
    first, drawn = core(tokens)[0], torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(core(tokens)[0], first)
    core.train()
    with clip_draws(generators(7, 8, 9)):
        together, again = core(tokens)[0], core(tokens)[0]
    with clip_draws(generators(8)):
        alone = core(tokens[1:2])[0]
    with clip_draws(generators(7, 8, 10)):
        other = core(tokens)[0]
    assert torch.equal(together, again)
    torch.testing.assert_close(alone[0], together[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other[:2], together[:2], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(other[2], together[2])


@torch.no_grad()
def test_nothing_tells_a_clip_from_its_reverse():
    core, tokens = make(), draw(2, 8, 4)
    torch.testing.assert_close(core(tokens.flip(1))[0], core(tokens)[0])


def test_groups_have_the_published_proportions_and_divide_one_another():
    fitted = {frames: fit_groups(frames) for frames in (1, 2, 4, 7, 8, 16, 24, 32, 60, 120)}
    assert fitted[60] == (6, 30, 60)
    assert fitted[120] == (12, 60, 120)
    assert fitted[16] == (1, 8, 16)
    assert fitted[7] == (1, 1, 7)
    for frames, groups in fitted.items():
        assert groups[2] == frames
        assert frames % groups[1] == groups[1] % groups[0] == 0


@torch.no_grad()
def test_longer_clips_give_an_output_for_each_last_group_and_parts_of_whole_groups_can_be_carried():
    core, tokens = make(groups=(1, 2, 4)), draw(2, 12, 3)
    whole, _ = core(tokens)
    assert whole.shape == (2, 3, 1, WIDTH // 4)
    first, state = core(tokens[:, :4])
    second, _ = core(tokens[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_groups_of_several_frames_cannot_be_streamed_and_must_divide_the_clip():
    with pytest.raises(ValueError, match="cannot run frame by frame"):
        make().step(draw(1, 1, 3)[:, 0])
    with pytest.raises(ValueError, match="takes whole clips"):
        make()(draw(1, 4, 3), make().init_state(1, 3))
    with pytest.raises(VidflowError, match=r"vtm_groups is \[1, 2, 4\], but clips have 6 frames"):
        make(groups=(1, 2, 4))(draw(1, 6, 3))
    assert make(groups=(1, 1, 1)).can_stream


@pytest.mark.parametrize("settings", [{}, {"groups": (2, 4, 8), "factor": 3, "share": 0.8}])
def test_the_cost_is_what_torch_counts(settings):
    core, tokens = VtmCore(64, 4, VtmSettings(**settings)).eval(), torch.randn(1, 8, 36, 64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        core(tokens)
    assert core.macs(8, 36) == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


def test_merging_makes_a_clip_cheaper_than_three_blocks_without():
    assert make(factor=6).macs(8, 36) < 0.5 * make(factor=1).macs(8, 36)
