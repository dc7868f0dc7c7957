from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidflow.config.tasks import TaskName, facts_of
from vidflow.models.cores.build import build_core
from vidflow.models.tasks import Task, TaskOptions, build_task, spec_of

NAMES: tuple[TaskName, ...] = get_args(TaskName)
STREAMED = [name for name in NAMES if not facts_of(name).hides_frames]
"""The tasks that answer frame by frame; hidden frames are known for whole clips only."""
every_task = pytest.mark.parametrize("name", NAMES)
every_streamed_task = pytest.mark.parametrize("name", STREAMED)
either_behaviour = pytest.mark.parametrize("reference", [False, True])
shapes = st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), st.integers(0, 2**31))
DEPTHS, PREFIX = 2, 1


def make(name: TaskName, *, reference: bool = False, core: str = "gated_transformer") -> Task:
    torch.manual_seed(0)
    built = build_core(core, embed_dim=16, num_layers=1, num_heads=2)
    options = TaskOptions(
        num_depths=DEPTHS,
        num_classes=3,
        image_size=16,
        readout_dim=32,
        # Few bases: the published sixteen turn the last bit of a box into another box two frames later.
        num_frequencies=4,
        reference=reference,
    )
    return build_task(name, built, options).double().eval()


def draw(name: TaskName, shape: tuple[int, int, int, int]):
    batch_size, num_frames, num_tokens, seed = shape
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch_size, num_frames, DEPTHS, num_tokens, 16, generator=generator).double()
    prefix = torch.randn(batch_size, num_frames, PREFIX, 16, generator=generator).double()
    frames = torch.randint(0, num_frames, (batch_size, 2), generator=generator)
    low, size = torch.rand(2, batch_size, 2, 2, generator=generator).double() / 2
    queries = {
        "box_tracking": {"boxes": torch.cat([low, low + size], -1), "query_frames": frames},
        "point_tracking": {"points": low, "query_frames": frames},
        "masked_tokens": {"mask_draws": torch.rand(batch_size, num_frames, generator=generator)},
    }
    return tokens, prefix, queries.get(name, {})


def run_steps(task, tokens, prefix, queries, state=None):
    frames = []
    for t in range(tokens.shape[1]):
        prediction, state = task.step(tokens[:, t], prefix[:, t], queries, state)
        frames.append(prediction)
    return {key: torch.stack([part[key] for part in frames], task.frame_axis) for key in frames[0]}, state


def frames_of(task, predictions, part):
    return {key: value.movedim(task.frame_axis, 0)[part] for key, value in predictions.items()}


def rows_of(values, mask):
    return {key: value[mask] for key, value in values.items()}


@every_streamed_task
@either_behaviour
@given(shape=shapes)
@settings(max_examples=5, deadline=None)
@torch.no_grad()
def test_frame_by_frame_equals_the_whole_clip(name, reference, shape):
    task, (tokens, prefix, queries) = make(name, reference=reference), draw(name, shape)
    steps, _ = run_steps(task, tokens, prefix, queries)
    # Double precision, so that a track that feeds on itself does not part over rounding; states are in single.
    torch.testing.assert_close(steps, task(tokens, prefix, queries), rtol=1e-4, atol=1e-4)


@every_streamed_task
@given(shape=shapes)
@settings(max_examples=5, deadline=None)
@torch.no_grad()
def test_a_later_frame_does_not_change_an_earlier_prediction(name, shape):
    task, (tokens, prefix, queries) = make(name), draw(name, shape)
    changed = tokens.clone()
    changed[:, -1] = changed[:, -1].roll(1, dims=-1)
    before = frames_of(task, task(tokens, prefix, queries), slice(-1))
    after = frames_of(task, task(changed, prefix, queries), slice(-1))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@every_streamed_task
@torch.no_grad()
def test_a_reset_stream_starts_anew_and_the_others_go_on(name):
    task, (tokens, prefix, queries) = make(name), draw(name, (3, 4, 2, 0))
    mask = torch.tensor([True, False, True])
    _, state = run_steps(task, tokens, prefix, queries)
    kept, _ = run_steps(task, tokens, prefix, queries, state)
    after, _ = run_steps(task, tokens, prefix, queries, task.reset_rows(state, mask))
    fresh, _ = run_steps(task, tokens[mask], prefix[mask], rows_of(queries, mask))
    torch.testing.assert_close(rows_of(after, mask), fresh, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows_of(after, ~mask), rows_of(kept, ~mask), rtol=1e-4, atol=1e-4)


@every_streamed_task
@torch.no_grad()
def test_the_initial_stream_is_what_no_state_means(name):
    task, (tokens, prefix, queries) = make(name).float(), draw(name, (2, 3, 2, 0))
    tokens, prefix = tokens.float(), prefix.float()
    queries = {key: value.float() if value.is_floating_point() else value for key, value in queries.items()}
    state = task.init_stream(2, 2 + PREFIX, num_queries=2)
    torch.testing.assert_close(
        run_steps(task, tokens, prefix, queries, state), run_steps(task, tokens, prefix, queries), rtol=0, atol=0
    )


@every_streamed_task
@torch.no_grad()
def test_mixed_tokens_may_be_given_directly(name):
    task, (tokens, prefix, queries) = make(name), draw(name, (2, 3, 2, 0))
    mixed = task.mix(tokens, prefix)
    torch.testing.assert_close(task.forward_mixed(mixed, queries), task(tokens, prefix, queries), rtol=0, atol=0)


def ground_truth(name: TaskName, generator: torch.Generator):
    """Clips of which the second and third token say everything there is to know."""
    num_clips, num_frames = 4, 4
    low = 0.1 + 0.4 * torch.rand(num_clips, 2, num_frames, 2, generator=generator)
    visible = torch.ones(num_clips, 2, num_frames, dtype=torch.bool)
    visible[0, 1] = False
    motion = torch.randn(num_clips, num_frames, 9, generator=generator)
    motion[:, 0] = float("nan")
    depth = 1 + 4 * torch.rand(num_clips, 1, 1, 1, generator=generator).expand(-1, num_frames, 16, 16).clone()
    depth[:, :, :4] = 0
    targets = {
        "classification": {"label": torch.tensor([0, 1, 2, 0])},
        "box_tracking": {"boxes": torch.cat([low, low + 0.3], -1), "boxes_visible": visible},
        "point_tracking": {
            "points": low,
            "points_visible": visible,
            "query_frames": torch.tensor([[0, 0], [1, 0], [0, 1], [0, 0]]),
        },
        "depth": {"depth": depth},
        "camera_pose": {"camera_motion": motion},
        "masked_tokens": {"mask_draws": torch.rand(num_clips, num_frames, generator=generator)},
    }
    return targets[name]


@every_task
@either_behaviour
def test_training_lowers_the_loss(name, reference):
    task = make(name, reference=reference, core="gru").float().train()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 4, DEPTHS, 3, 16, generator=generator).half()
    targets = ground_truth(name, generator)
    queries = task.queries_of(targets)
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = task.loss(task(tokens, None, queries), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(value).all() for value in task.parameters())
    # Pose balances its losses by learned logarithms, so its loss may go below zero.
    assert losses[-1] < 0.7 * losses[0]


@every_task
def test_every_parameter_that_predicts_gets_a_gradient(name):
    task = make(name).float().train()
    generator = torch.Generator().manual_seed(0)
    targets = ground_truth(name, generator)
    tokens = torch.randn(4, 4, DEPTHS, 3, 16, generator=generator)
    task.loss(task(tokens, None, task.queries_of(targets)), targets).backward()
    without = {key for key, value in task.named_parameters() if value.grad is None}
    # A key bias shifts all scores of a query alike; where few queries read, it is not computed at all.
    assert without <= {"readout.key_proj.bias"}


def test_one_tapped_depth_needs_no_adapter():
    options = TaskOptions(num_classes=2, readout_dim=16)
    task = build_task("classification", build_core("mean", embed_dim=8), options)
    assert task.depth_mixing is None
    assert task(torch.randn(1, 2, 1, 3, 8), None, {})["logits"].shape == (1, 2, 2)
    with pytest.raises(ValueError, match="K=1"):
        task(torch.randn(1, 2, 3, 3, 8), None, {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("classification", {}, "num_classes is None"),
        ("classification", {"num_classes": 2, "readout_dim": 10, "readout_heads": 4}, "readout_heads 4"),
        ("depth", {"image_size": 12}, "image_size is 12"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_task(name, build_core("mean", embed_dim=8), TaskOptions(**options))


@every_task
def test_a_task_and_what_is_known_of_it_without_torch_agree(name):
    spec, targets = spec_of(name), ground_truth(name, torch.Generator().manual_seed(0))
    assert spec.facts == facts_of(name)
    assert set(spec.facts.annotations) == targets.keys() - {"label", "mask_draws"}
    assert spec.facts.needs_labels == ("label" in targets)
    metric = spec.build_metric()
    rows = ({key: value[row : row + 1] for key, value in targets.items()} for row in range(4))
    metric.update(spec.trivial.answer(spec.trivial.fit(rows, 3), targets), targets)
    assert spec.facts.objective.metric.removeprefix("val/") in metric.compute()
    assert set(spec.facts.metrics) == metric.compute().keys()
    task, (tokens, prefix, queries) = make(name), draw(name, (2, 3, 4, 0))
    assert task.query is None if name not in ("box_tracking", "point_tracking") else task.query.name in queries
    with torch.no_grad():
        assert spec.facts.predicts in {"classes", *task(tokens, prefix, queries)}


def test_published_readouts_are_the_default():
    with torch.device("meta"):
        core = build_core("mean", embed_dim=1024)
        tasks = {name: build_task(name, core, TaskOptions(num_classes=174)) for name in NAMES}
    assert tasks["classification"].readout.query.shape == (1, 12, 64)
    assert tasks["box_tracking"].decoder.layers[0].multihead_attn.num_heads == 4
    assert tasks["point_tracking"].decoder.layers[0].multihead_attn.num_heads == 8
    assert tasks["depth"].readout.query.shape == (784, 16, 64)
    assert tasks["camera_pose"].head[1].weight.shape == (512, 1024)
