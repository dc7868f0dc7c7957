import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from vidflow.config.tasks import TaskName
from vidflow.errors import VidflowError
from vidflow.models.cores.build import build_core
from vidflow.models.encoder import build_encoder
from vidflow.models.reduction.build import build_reducer
from vidflow.models.streaming import StreamingModel
from vidflow.models.tasks import TaskOptions, build_task

TASKS = ["classification", "box_tracking", "point_tracking", "depth", "camera_pose"]
QUERIES = {
    "box_tracking": {"boxes": np.array([[0.1, 0.2, 0.5, 0.6], [0.4, 0.4, 0.9, 0.8]])},
    "point_tracking": {"points": np.array([[0.25, 0.5], [0.7, 0.1]])},
}
FRAMES = np.random.default_rng(0).integers(0, 256, size=(6, 32, 32, 3), dtype=np.uint8)
# The same sums in batches of one frame and of six: kernels differ, so the last bits do.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def encoder():
    return build_encoder(name="test_vit", weights="random:0", img_size=32, depths=[0, 1], dtype="float32")


def make_task(name: TaskName, core: str = "gru", *, num_depths: int = 2, embed_dim: int = 64):
    torch.manual_seed(0)
    built = build_core(core, embed_dim=embed_dim, num_layers=1, num_heads=2)
    settings = {"num_depths": num_depths, "readout_dim": 32, "readout_heads": 2}
    return build_task(name, built, TaskOptions(num_classes=5, image_size=32, **settings)).eval()


def batched(task, encoder, frames, queries):
    """What the task says of the whole clip at once, frame by frame."""
    encoded = encoder(torch.from_numpy(frames))
    tokens = encoded.tokens[None, :, -task.num_depths :].half().float()
    given = {name: torch.tensor(value)[None] for name, value in queries.items()}
    given = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    with torch.inference_mode():
        whole = task(tokens, encoded.prefix[None].half().float(), given)
    return [{name: part.select(task.frame_axis, t)[0] for name, part in whole.items()} for t in range(len(frames))]


def stream(model, frames, queries):
    return [model.step(frame, **(queries if not number else {})) for number, frame in enumerate(frames)]


def assert_same(one, other, **tolerance):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        # `batched` knows neither names nor probabilities.
        named = {"names", "probabilities"}
        assert left.keys() - named == right.keys() - named
        for name in left.keys() - named:
            np.testing.assert_allclose(left[name], right[name], **tolerance)


@pytest.mark.parametrize("name", TASKS)
def test_frame_by_frame_is_the_clip_at_once(encoder, name):
    task, queries = make_task(name), QUERIES.get(name, {})
    assert_same(
        stream(StreamingModel(task, encoder), FRAMES, queries), batched(task, encoder, FRAMES, queries), **CLOSE
    )


@pytest.mark.parametrize("name", TASKS)
def test_a_state_saved_in_the_middle_goes_on_as_if_nothing_had_been(encoder, name):
    task, queries = make_task(name, "gated_transformer"), QUERIES.get(name, {})
    model = StreamingModel(task, encoder)
    through = stream(model, FRAMES, queries)
    model.reset()
    stream(model, FRAMES[:3], queries)
    kept = save(model.state_dict())
    stream(model, FRAMES[3:], {})
    other = StreamingModel(make_task(name, "gated_transformer"), encoder)
    other.load_state_dict(load(kept))
    # The same operations on the same numbers.
    assert_same([other.step(frame) for frame in FRAMES[3:]], through[3:], rtol=0, atol=0)
    assert other.num_frames == model.num_frames == 6


def test_reset_forgets_everything(encoder):
    model = StreamingModel(make_task("box_tracking"), encoder)
    first = stream(model, FRAMES, QUERIES["box_tracking"])
    model.reset()
    assert model.num_frames == model.num_queries == 0
    assert_same(stream(model, FRAMES, QUERIES["box_tracking"]), first, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "key"), [("box_tracking", "boxes"), ("point_tracking", "points")])
def test_queries_may_come_later_and_do_not_disturb_those_before(encoder, name, key):
    task, given = make_task(name), QUERIES[name][key]
    model = StreamingModel(task, encoder)
    got = [
        model.step(frame, **({key: given[:1]} if t == 1 else {key: given[1:]} if t == 3 else {}))
        for t, frame in enumerate(FRAMES)
    ]
    assert [len(part[key]) for part in got] == [0, 1, 1, 2, 2, 2]
    wanted = batched(task, encoder, FRAMES, {key: given, "query_frames": np.array([1, 3])})
    for t, number in [(t, 0) for t in range(1, 6)] + [(t, 1) for t in range(3, 6)]:
        np.testing.assert_allclose(got[t][key][number], wanted[t][key][number], **CLOSE)


@pytest.mark.parametrize("core", ["gru", "mean", "mamba", "causal_attention", "gated_transformer"])
def test_what_is_remembered_does_not_grow(encoder, core):
    model = StreamingModel(make_task("point_tracking", core), encoder)
    model.step(FRAMES[0], **QUERIES["point_tracking"])
    before = {name: part.numel() for name, part in model.state_dict().items()}
    for _ in range(40):
        model.step(FRAMES[1])
    assert {name: part.numel() for name, part in model.state_dict().items()} == before


def test_the_answer_of_a_classifier_names_its_classes(encoder):
    model = StreamingModel(make_task("classification"), encoder, class_names=["left", "right", "up"])
    answer = model.step(FRAMES[0])
    assert answer["names"].tolist() == ["left", "right", "up", "3", "4"]
    np.testing.assert_allclose(answer["probabilities"], np.exp(answer["logits"]) / np.exp(answer["logits"]).sum(), 1e-5)


def test_the_encoder_runs_once_per_frame_and_sees_what_prepare_made(encoder):
    seen = []

    def prepare(frame):
        seen.append(frame.shape)
        return torch.from_numpy(frame[8:40, :32].copy())

    model = StreamingModel(make_task("classification"), encoder, prepare=prepare)
    large = np.zeros((48, 64, 3), np.uint8)
    large[8:40, :32] = FRAMES[0]
    plain = StreamingModel(make_task("classification"), encoder).step(FRAMES[0])
    assert_same([model.step(large)], [plain], rtol=0, atol=0)
    assert_same([model.step(torch.from_numpy(large))], [model.step(large)], rtol=1, atol=1)
    assert seen == [(48, 64, 3)] * 3


@pytest.mark.parametrize(
    "reducer", [("tome", {"num_merged": 2}), ("drop", {"num_merged": 2}), ("lower_resolution", {"keep": 0.25})]
)
def test_tokens_reduced_in_a_frame_are_put_back_to_their_places(reducer):
    name, settings = reducer
    encoder = build_encoder(
        name="test_vit",
        weights="random:0",
        img_size=64,
        dtype="float32",
        reduction=build_reducer(name, **settings),
    )
    task = make_task("classification", num_depths=1)
    frames = np.random.default_rng(1).integers(0, 256, size=(4, 64, 64, 3), dtype=np.uint8)
    encoded = encoder(torch.from_numpy(frames))
    grid = torch.zeros(4, 1, 16, encoded.tokens.shape[-1])
    for t, patch in np.ndindex(4, 16):  # slowly, one patch at a time
        where = int(encoded.assignment[t, 0, patch])
        grid[t, 0, patch] = encoded.tokens[t, 0, where] if where >= 0 else grid[t - 1, 0, patch] if t else 0
    with torch.inference_mode():
        wanted = task(grid[None].half().float(), encoded.prefix[None].half().float(), {})["logits"][0]
    got = np.stack([out["logits"] for out in stream(StreamingModel(task, encoder), frames, {})])
    np.testing.assert_allclose(got, wanted, **CLOSE)


def test_the_state_of_another_trial_is_refused(encoder):
    state = StreamingModel(make_task("classification", "gru"), encoder).state_dict()
    other = StreamingModel(make_task("classification", "mean"), encoder)
    with pytest.raises(VidflowError, match="load it with the trial that saved it"):
        other.load_state_dict(state)
    # Of the same shapes, but other weights; and the other way round, of the same weights.
    task = make_task("classification", "gru")
    with torch.no_grad():
        next(iter(task.parameters())).add_(1e-3)
    twin = StreamingModel(task, encoder)
    saved_by = bytes(state["trial"].tolist()).hex()
    with pytest.raises(VidflowError, match=f"digest {saved_by}, this trial has {twin.trial_sha256}"):
        twin.load_state_dict(state)
    own = StreamingModel(make_task("classification", "gru"), encoder)
    with pytest.raises(VidflowError, match=r"the state holds core\.0"):
        own.load_state_dict(state | {"core.0": state["core.0"][:, 1:]})
    with pytest.raises(VidflowError, match="digest none"):
        own.load_state_dict({name: part for name, part in state.items() if name != "trial"})


def test_a_state_that_is_not_finite_is_refused_and_changes_nothing(encoder):
    model = StreamingModel(make_task("classification"), encoder)
    stream(model, FRAMES[:2], {})
    kept = model.state_dict()
    with pytest.raises(VidflowError, match=r"NaN or infinite numbers in core\.0"):
        model.load_state_dict(kept | {"core.0": torch.full_like(kept["core.0"], torch.inf)})
    torch.testing.assert_close(model.state_dict(), kept, rtol=0, atol=0)


def test_a_state_goes_on_under_an_encoder_of_another_precision():
    reducer = build_reducer("random_drop", place=None, num_merged=1)
    encoders = [
        build_encoder(name="test_vit", weights="random:0", img_size=32, depths=[0, 1], dtype=dtype, reduction=reducer)
        for dtype in ("bfloat16", "float32")
    ]
    first, second = (StreamingModel(make_task("classification"), each) for each in encoders)
    before = stream(first, FRAMES[:3], {})
    second.load_state_dict(first.state_dict())
    assert len(before) == second.num_frames == 3
    assert np.isfinite(second.step(FRAMES[3])["logits"]).all()


@pytest.mark.parametrize("core", ["mean", "gru", "mamba", "causal_attention"])
def test_weights_in_half_precision_keep_a_state_that_can_be_loaded(encoder, core):
    tasks = [make_task("classification", core).bfloat16() for _ in range(2)]
    tasks[1].load_state_dict(tasks[0].state_dict())
    one, other = (StreamingModel(task, encoder) for task in tasks)
    stream(one, FRAMES[:3], {})
    other.load_state_dict(one.state_dict())
    assert_same([other.step(FRAMES[3])], [one.step(FRAMES[3])], atol=0)


def test_a_frame_that_is_refused_leaves_nothing_behind(encoder):
    model = StreamingModel(make_task("box_tracking"), encoder)
    box = QUERIES["box_tracking"]["boxes"][:1]
    with pytest.raises(ValueError, match="32"):
        model.step(FRAMES[0][:16], boxes=box)
    with pytest.raises(ValueError, match="wanted finite numbers"):
        model.step(FRAMES[0], boxes=np.full((1, 4), np.nan))
    assert model.num_queries == model.num_frames == 0
    assert model.step(FRAMES[0][:, ::-1], boxes=box)["boxes"].shape == (1, 4)


def test_queries_that_a_task_does_not_take_are_refused(encoder):
    with pytest.raises(ValueError, match="ClassificationTask got boxes; it takes no queries"):
        StreamingModel(make_task("classification"), encoder).step(FRAMES[0], boxes=np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"boxes has shape \(1, 2\), wanted \(any number, 4\)"):
        StreamingModel(make_task("box_tracking"), encoder).step(FRAMES[0], boxes=np.zeros((1, 2)))


def test_a_core_that_sees_groups_of_frames_is_refused(encoder):
    core = build_core("vtm", embed_dim=64, num_heads=2)
    task = build_task("classification", core, TaskOptions(num_classes=5, readout_dim=32, readout_heads=2))
    with pytest.raises(VidflowError, match=r"cannot run frame by frame; train one with vtm_groups \[1, 1, 1\]"):
        StreamingModel(task, encoder)
    with pytest.raises(ValueError, match="only classification can read it"):
        build_task("depth", core, TaskOptions(image_size=32, readout_dim=32, readout_heads=2))
