import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidflow.models.cores.build import build_core
from vidflow.models.tasks import TaskOptions, build_task
from vidflow.models.tasks.coordinates import rotation_matrix


def make(*, standardize=False):
    core = build_core("identity", embed_dim=16)
    return build_task("camera_pose", core, TaskOptions(readout_dim=32, standardize=standardize))


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_any_six_numbers_make_a_rotation_and_two_columns_of_one_give_it_back(seed):
    columns = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)).double()
    rotations = rotation_matrix(columns)
    identity = torch.eye(3).double().expand(4, 3, 3)
    torch.testing.assert_close(rotations @ rotations.transpose(1, 2), identity)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(4).double())
    torch.testing.assert_close(rotation_matrix(torch.cat([rotations[..., 0], rotations[..., 1]], -1)), rotations)


def test_the_loss_balances_translation_and_rotation_and_leaves_out_the_first_frame():
    task = make()
    with torch.no_grad():
        task.log_variances.copy_(torch.tensor([0.5, -0.2]))
    turn = math.radians(30)
    still = torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 1, 0])
    moved = torch.tensor([3.0, 0, 4, math.cos(turn), math.sin(turn), 0, -math.sin(turn), math.cos(turn), 0])
    predicted = torch.stack([moved, moved])[None]
    wanted = torch.stack([torch.full((9,), float("nan")), still])[None]
    # Frobenius norm of the difference of rotations by an angle: 2 sqrt(2) sin(angle / 2).
    chord = 2 * 2**0.5 * math.sin(turn / 2)
    expected = math.exp(-0.5) * 5 + 0.5 + math.exp(0.2) * chord - 0.2
    loss = task.loss({"camera_motion": predicted}, {"camera_motion": wanted})
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_single_frame_has_no_motion_to_learn():
    with pytest.raises(ValueError, match="at least 2 frames"):
        make().loss({"camera_motion": torch.zeros(1, 1, 9)}, {"camera_motion": torch.zeros(1, 1, 9)})


@torch.no_grad()
def test_the_pose_is_read_from_the_mean_of_all_tokens():
    task, features = make(), torch.randn(2, 3, 5, 16)
    predictions, _ = task.read(features, {}, ())
    expected = task.head(task.projection(features.mean(2)))
    torch.testing.assert_close(predictions["camera_motion"], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_before_training_the_camera_stands_still():
    torch.manual_seed(0)
    predictions, _ = make().read(torch.randn(2, 3, 5, 16), {}, ())
    still = torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 1, 0]).expand(2, 3, 9)
    # Ten times the deviation of weights that multiply activations of order one, and the biases.
    torch.testing.assert_close(predictions["camera_motion"], still, rtol=0, atol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("standardize", [False, True])
def test_only_a_standardized_head_sees_past_what_is_alike_in_all_frames(standardize):
    torch.manual_seed(0)
    task = make(standardize=standardize).double().train()
    features, alike = torch.randn(4, 3, 5, 16).double(), 100 * torch.randn(16).double()
    seen, hidden = (
        task.read(each, {}, ())[0]["camera_motion"].var((0, 1)).sum() for each in (features, features + alike)
    )
    assert (hidden > 0.9 * seen) == standardize


@torch.no_grad()
def test_a_standardized_head_reads_a_frame_as_it_reads_the_clip():
    task = make(standardize=True).train()
    tokens = torch.randn(4, 3, 1, 5, 16)
    for _ in range(3):
        task(tokens, None, {})
    task.eval()
    whole, state = task(tokens, None, {})["camera_motion"], None
    for t in range(tokens.shape[1]):
        frame, state = task.step(tokens[:, t], None, {}, state)
        torch.testing.assert_close(frame["camera_motion"], whole[:, t])
