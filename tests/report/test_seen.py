import numpy as np
import pytest
import torch

from vidflow.models.tasks.readouts import AttentionReadout
from vidflow.report.seen import light_up


@pytest.mark.parametrize("num_frames", [0, 3])
def test_the_weights_of_a_readout_are_those_with_which_it_averages_values(num_frames: int) -> None:
    torch.manual_seed(0)
    readout = AttentionReadout(8, 5, width=12, num_heads=3, num_queries=2, num_frames=num_frames, query_std=2.0)
    tokens = torch.randn(2, 3, 4, 8)
    with torch.no_grad():
        weights = readout.attention(tokens)
        assert weights.shape == (2, 2, 3, 12)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))
        assert weights.std() > 0.01  # else any mean would do
        features = readout.input_norm(tokens)
        if readout.temporal_posenc is not None:
            features = features + readout.temporal_posenc
        values = readout._split_heads(readout.value_proj(features.flatten(1, 2)))
        attended = (weights.transpose(1, 2) @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attended, readout._attend(features.flatten(1, 2)))
        torch.testing.assert_close(attended, readout._attend_folded(features.flatten(1, 2)), rtol=1e-4, atol=1e-5)


def test_the_patch_with_the_largest_weight_is_unchanged_and_one_without_weight_is_dark() -> None:
    frames = np.full((1, 4, 6, 3), 200, np.uint8)
    lit = light_up(frames, np.array([[[0.0, 0.5], [1.0, 0.5]]]))
    assert (lit[0, :2, :3] == 50).all()
    assert (lit[0, 2:, :3] == 200).all()
    assert (lit[0, :, 3:] == 125).all()
