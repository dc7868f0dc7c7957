"""vid-TLDR's saliency."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from shapes import vit_shape

from vidflow.errors import VidflowError
from vidflow.models.reduction.saliency import BlockSaliency, attention_saliency


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12))
def test_saliency_is_zero_exactly_on_the_flatter_tokens_and_one_on_the_sharpest(seed: int, num_tokens: int) -> None:
    logits = 3 * torch.randn(2, 3, num_tokens, num_tokens + 1, generator=torch.Generator().manual_seed(seed))
    attention = logits.softmax(-1)
    saliency = attention_saliency(attention)
    sharpness = (attention * attention.log()).sum(-1).mean(1)
    scaled = sharpness - sharpness.amin(1, keepdim=True)
    assert torch.equal(saliency == 0, scaled <= scaled.mean(1, keepdim=True))
    assert torch.equal(saliency.amax(1), torch.ones(2))
    assert torch.equal(saliency.argmax(1), sharpness.argmax(1))


def test_uniform_attention_makes_all_tokens_salient_instead_of_nan() -> None:
    assert torch.equal(attention_saliency(torch.full((1, 2, 5, 6), 1 / 6)), torch.ones(1, 5))


def test_weights_that_underflow_to_zero_count_as_zero() -> None:
    saliency = attention_saliency(torch.eye(4).expand(1, 1, 4, 4) * torch.tensor([1.0, 1, 1, 1]))
    assert torch.isfinite(saliency).all()
    mixed = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.4, 0.3, 0.3]]).view(1, 1, 3, 3)
    assert attention_saliency(mixed)[0].tolist() == [1.0, 0.0, 0.0]


def test_numbers_of_tokens_are_checked() -> None:
    with pytest.raises(VidflowError, match="vidtldr"):
        BlockSaliency(num_merged=())
    with pytest.raises(VidflowError, match="the encoder has 2"):
        BlockSaliency(num_merged=(1, 1, 1)).check(vit_shape(depth=2, side=4), num_frames=1)
