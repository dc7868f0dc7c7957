import pytest
import torch

from vidflow.models.cores.causal_attention import CausalAttentionCore, TemporalAttention, rotate_frames


def make(window):
    torch.manual_seed(0)
    return CausalAttentionCore(16, 2, 2, window=window).eval()


@torch.no_grad()
def test_products_of_rotated_vectors_depend_on_the_distance_in_time_only():
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 8).expand(-1, -1, 6, -1), torch.randn(1, 1, 1, 8).expand(-1, -1, 6, -1)
    products = (rotate_frames(query) @ rotate_frames(key).transpose(-1, -2))[0, 0]
    for distance in range(-5, 6):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    later = rotate_frames(query, 7) @ rotate_frames(key, 7).transpose(-1, -2)
    torch.testing.assert_close(later[0, 0], products, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_layer_is_masked_attention_over_the_whole_clip():
    torch.manual_seed(0)
    layer, window = TemporalAttention(16, 2, 0.0).eval(), 3
    core = CausalAttentionCore(16, 1, 2, window=window)
    clip = torch.randn(1, 7, 1, 16)
    state = core.init_state(1, 1)
    residual, _ = layer(clip, state[1], core._visible(state[0], 7))
    query, key, value = layer.qkv(layer.norm(clip))[0, :, 0].view(7, 3, 2, 8).permute(1, 2, 0, 3)
    scores = (rotate_frames(query[None]) @ rotate_frames(key[None]).transpose(-1, -2))[0] / 8**0.5
    age = torch.arange(7)[:, None] - torch.arange(7)
    scores = scores.masked_fill((age < 0) | (age >= window), float("-inf"))
    expected = layer.proj((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))
    torch.testing.assert_close(residual[0, :, 0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_frames_beyond_the_window_of_every_layer_are_forgotten():
    core, clip = make(window=3), torch.randn(1, 9, 2, 16)
    changed = clip.clone()
    # Two layers of three frames see this frame and the four before it.
    changed[:, :4] = torch.randn(1, 4, 2, 16)
    torch.testing.assert_close(core(changed)[0][:, 8], core(clip)[0][:, 8], rtol=0, atol=1e-6)
    changed[:, 4] = torch.randn(1, 2, 16)
    assert (core(changed)[0][:, 8] - core(clip)[0][:, 8]).abs().max() > 1e-3


@torch.no_grad()
def test_the_state_does_not_grow_with_the_stream():
    core = make(window=4)
    _, early = core(torch.randn(1, 2, 2, 16))
    _, late = core(torch.randn(1, 50, 2, 16), early)
    assert [part.shape for part in early] == [part.shape for part in late]
    assert late[0].item() == 3


@torch.no_grad()
def test_a_window_of_one_frame_has_no_memory():
    core, clip = make(window=1), torch.randn(1, 4, 2, 16)
    alone = torch.cat([core(clip[:, t : t + 1])[0] for t in range(4)], 1)
    torch.testing.assert_close(core(clip)[0], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_order_of_frames_matters():
    core, clip = make(window=8), torch.randn(1, 6, 2, 16)
    shuffled = clip[:, [1, 0, 3, 2, 4, 5]]
    assert (core(clip)[0][:, -1] - core(shuffled)[0][:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize(("kwargs", "message"), [({"window": 0}, "window is 0"), ({"num_heads": 16}, "even width")])
def test_impossible_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CausalAttentionCore(16, 1, **{"num_heads": 2, **kwargs})
