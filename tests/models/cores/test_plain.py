import torch
from torch import nn

from vidflow.models.cores.plain import GruCore, MeanCore


@torch.no_grad()
def test_the_mean_cannot_tell_a_clip_from_its_reverse():
    torch.manual_seed(0)
    core, clip = MeanCore(8), torch.randn(2, 6, 3, 8)
    forward, backward = core(clip)[0], core(clip.flip(1))[0]
    torch.testing.assert_close(forward[:, -1], backward[:, -1], rtol=1e-5, atol=1e-5)
    assert (forward[:, 2] - backward[:, 2]).abs().max() > 0.1


@torch.no_grad()
def test_the_gru_can_tell_a_clip_from_its_reverse():
    torch.manual_seed(0)
    core, clip = GruCore(8, 1), torch.randn(2, 6, 3, 8)
    assert (core(clip)[0][:, -1] - core(clip.flip(1))[0][:, -1]).abs().max() > 0.1


@torch.no_grad()
def test_the_mean_is_the_mean_of_the_frames_so_far():
    torch.manual_seed(0)
    core, clip = MeanCore(8), torch.randn(2, 5, 3, 8)
    slow = torch.stack([clip[:, : t + 1].mean(1) for t in range(5)], 1)
    torch.testing.assert_close(core(clip)[0], core.output_norm(slow), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_mean_of_a_long_constant_stream_stays_exact():
    core, frame = MeanCore(8), torch.randn(1, 500, 1, 8)[:, :1].expand(-1, 500, -1, -1)
    _, state = core(frame)
    _, (mean, count) = core(frame, state)
    assert count.item() == 1000
    # The sum of 500 equal numbers is rounded some hundred times; each rounding is one part in ten million.
    torch.testing.assert_close(mean, frame[:, 0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_gru_is_a_cell_per_token_with_shared_weights():
    torch.manual_seed(0)
    core, clip = GruCore(8, 1), torch.randn(2, 4, 3, 8)
    cell = nn.GRUCell(8, 8)
    for name, value in cell.named_parameters():
        value.copy_(getattr(core.gru, f"{name}_l0"))
    for row in range(2):
        for token in range(3):
            hidden = torch.zeros(1, 8)
            for t in range(4):
                hidden = cell(clip[row, t, token][None], hidden)
                expected = core.output_norm(hidden)[0]
                torch.testing.assert_close(core(clip)[0][row, t, token], expected, rtol=1e-4, atol=1e-5)
