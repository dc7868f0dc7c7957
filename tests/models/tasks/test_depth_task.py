import pytest
import torch

from vidflow.models.cores.build import build_core
from vidflow.models.tasks import TaskOptions, build_task


def make():
    torch.manual_seed(0)
    core = build_core("identity", embed_dim=16)
    return build_task("depth", core, TaskOptions(readout_dim=32, image_size=24)).eval()


@torch.no_grad()
def test_query_number_k_fills_block_number_k_row_by_row():
    task, features = make(), torch.randn(2, 3, 5, 16)
    predictions, _ = task.read(features, {}, ())
    for frame in range(3):
        answers = task.readout(features[:, frame, None])
        for k in range(9):
            row, column = 8 * (k // 3), 8 * (k % 3)
            block = predictions["depth"][:, frame, row : row + 8, column : column + 8]
            torch.testing.assert_close(block, answers[:, k].view(2, 8, 8), rtol=1e-4, atol=1e-5)


def test_the_loss_counts_valid_pixels_only():
    depth = torch.tensor([2.0, 4.0, 0.0, 11.0]).view(1, 1, 2, 2)
    predicted = torch.tensor([4.0, 3.0, 77.0, float("nan")]).view(1, 1, 2, 2)
    loss = make().loss({"depth": predicted}, {"depth": depth})
    assert loss.item() == pytest.approx((2**2 + 1 + 2 / 2 + 1 / 4) / 2)
    assert make().loss({"depth": predicted}, {"depth": torch.zeros_like(depth)}) == 0


@torch.no_grad()
def test_before_training_depth_is_in_the_middle_of_the_range_and_blocks_look_at_different_tokens():
    task, features = make(), torch.randn(4, 2, 9, 16)
    predictions, _ = task.read(features, {}, ())
    assert 4 < predictions["depth"].mean().item() < 6
    # What a block reads changes with the block by a good part of what it reads, not by a hundredth of it.
    readout = task.readout
    keys = readout.key_proj(readout.input_norm(features[:, 0])).view(4, 9, *readout.query.shape[1:])
    logits = torch.einsum("qhd,bnhd->bhqn", readout.query, keys) / readout.query.shape[-1] ** 0.5
    assert logits.std(2).mean() > 0.5
