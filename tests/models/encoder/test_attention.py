"""Attention with a bias per key: the extra channels of the fused kernel, and queries that see no bias."""

import pytest
import torch

from vidflow.models.encoder.attention import attend, attend_eagerly


@pytest.mark.parametrize("num_unbiased", [0, 1, 3])
def test_the_log_of_sizes_is_attention_over_repeated_keys(num_unbiased: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, 5, 12, generator=generator) for _ in range(3))
    sizes = torch.tensor([1, 4, 2, 1, 3])
    repeated = (part.repeat_interleave(sizes, dim=2) for part in (keys, values))
    weighted = torch.nn.functional.scaled_dot_product_attention(queries, *repeated)
    plain = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)
    wanted = torch.cat([plain[:, :, :num_unbiased], weighted[:, :, num_unbiased:]], dim=2)
    bias = sizes.log().expand(2, -1)
    for run in (attend, attend_eagerly):
        found = run(queries, keys, values, bias, num_unbiased=num_unbiased)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(run(queries, keys, values, None), plain, atol=1e-5, rtol=1e-5)
