import pytest
import torch

from vidflow.models.cores.depth_mixing import DepthMixing


def make(chunk_frames=None):
    torch.manual_seed(0)
    return DepthMixing(8, 3, chunk_frames=chunk_frames)


def draw():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, 3, 4, 8, generator=generator), torch.randn(2, 5, 2, 8, generator=generator)


def test_mixing_is_the_mean_of_enriched_depths_behind_the_prefix_of_the_last():
    mixing, (tokens, prefix) = make(), draw()
    expected = torch.zeros(2, 5, 4, 8)
    for depth, layer in enumerate(mixing.layers):
        part = tokens[:, :, depth]
        normed = (part - part.mean((0, 1, 2))) / (part.var((0, 1, 2), unbiased=False) + 1e-5).sqrt()
        expected += (part + layer.mlp(normed)) / 3
    mixed = mixing(tokens, prefix)
    torch.testing.assert_close(mixed[:, :, 2:], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[:, :, :2], prefix, rtol=0, atol=0)
    assert mixing(tokens, None).shape == (2, 5, 4, 8)


@pytest.mark.parametrize("chunk_frames", [1, 3, 100])
def test_chunks_change_neither_output_nor_gradient_nor_statistics(chunk_frames):
    tokens, prefix = draw()
    results = []
    for mixing in (make(), make(chunk_frames)):
        output = mixing(tokens, prefix)
        output.square().sum().backward()
        grads = [value.grad for value in mixing.parameters()]
        results.append((output, *grads, *(value for key, value in mixing.named_buffers() if "running" in key)))
    # Sums over rows in parts: equal up to the rounding of single precision.
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_in_eval_mode_a_frame_alone_is_mixed_as_in_its_clip():
    mixing, (tokens, prefix) = make(), draw()
    mixing(tokens, prefix)
    mixing.eval()
    alone = torch.cat([mixing(tokens[:, t : t + 1], prefix[:, t : t + 1]) for t in range(5)], 1)
    torch.testing.assert_close(alone, mixing(tokens, prefix), rtol=1e-5, atol=1e-6)


# Source: Orlova et al. 2026 (arXiv 2605.19137), trainable adapters of four depths at ViT-S, B and L, by arithmetic.
@pytest.mark.parametrize(("embed_dim", "millions"), [(384, 2.367), (768, 9.453), (1024, 16.798)])
def test_adapters_have_the_published_number_of_parameters(embed_dim, millions):
    with torch.device("meta"):
        mixing = DepthMixing(embed_dim, 4)
    assert round(sum(value.numel() for value in mixing.parameters()) / 1e6, 3) == millions
