"""Tokens brought to zero mean and unit deviation."""

import pytest
import torch

from vidflow.models.tasks.token_scale import TokenScale


def clips(num_clips=7):
    generator = torch.Generator().manual_seed(0)
    return [5 + 3 * torch.randn(4, 2, 9, 6, generator=generator) * torch.arange(1, 7) for _ in range(num_clips)]


def test_measured_clips_come_out_with_zero_mean_and_unit_deviation_in_every_channel_of_every_depth():
    scale = TokenScale(2, 6)
    scale.measure(clips())
    scaled, _ = scale(torch.stack(clips()), None)
    rows = scaled.movedim(2, 0).flatten(1, 3)
    torch.testing.assert_close(rows.mean(1), torch.zeros(2, 6), atol=1e-5, rtol=0)
    # The deviation is divided by itself plus 1e-4.
    torch.testing.assert_close(rows.std(1, correction=0), torch.ones(2, 6), atol=1e-4, rtol=0)


def test_prefix_tokens_go_by_the_last_depth():
    scale = TokenScale(2, 6)
    scale.measure(clips())
    tokens = torch.stack(clips())
    scaled, prefix = scale(tokens, tokens[:, :, 1, :3])
    torch.testing.assert_close(prefix, scaled[:, :, 1, :3])


def test_a_constant_channel_becomes_zero_and_not_infinite():
    scale = TokenScale(1, 2)
    scale.measure([torch.tensor([2.0, -3.0]).expand(4, 1, 5, 2)])
    scaled, _ = scale(torch.tensor([2.0, -3.0]).expand(1, 4, 1, 5, 2), None)
    assert scaled.isfinite().all()
    assert scaled.abs().max() < 1e-2


def test_unmeasured_it_changes_nothing_and_measuring_twice_gives_the_same_bits():
    tokens = torch.stack(clips())
    assert TokenScale(2, 6)(tokens, None)[0].equal(tokens)
    scales = [TokenScale(2, 6), TokenScale(2, 6)]
    for scale in scales:
        scale.measure(iter(clips()))
    assert scales[0].mean.equal(scales[1].mean)
    assert scales[0].deviation.equal(scales[1].deviation)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_cached_half_precision_is_summed_in_double(dtype):
    scale = TokenScale(1, 1)
    scale.measure(torch.full((8, 1, 64, 1), 1000.0, dtype=dtype) for _ in range(50))
    assert scale.mean.item() == 1000.0
