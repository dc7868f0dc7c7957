import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from vidflow.errors import VidflowError
from vidflow.models.checkpoints import export_released, load_released, load_rvm, rvm_num_heads
from vidflow.models.cores.build import build_core
from vidflow.models.tasks import TaskOptions, TaskState, build_task
from vidflow.models.tasks.coordinates import to_centers

# Single precision, outputs of order one: the golden numbers were computed in another order of operations.
GOLDEN = {"rtol": 0, "atol": 1e-5}
CORES = ("gated_transformer", "mamba", "mamba_mix", "gated_mamba_mix")
TASKS = ("classification", "box_tracking", "point_tracking", "depth", "camera_pose")


def weights_of(file):
    return {key.removeprefix("w."): value for key, value in file.items() if key.startswith("w.")}


def small_task(name, **kwargs):
    core = build_core("gated_mamba_mix", embed_dim=32, num_layers=2, num_heads=4)
    settings = {"num_classes": 7, "image_size": 64, "readout_dim": 32, "readout_heads": 4, "query_hidden_dim": 64}
    settings |= {"head_hidden_dim": 16 if name == "point_tracking" else 64, "reference": True}
    return build_task(name, core, TaskOptions(**(settings | kwargs))).eval()


def golden_task(shared_dir, name):
    """Load a task's file: the task, the tokens that its outputs were computed from, and the file."""
    file = load_file(shared_dir / f"fixtures/task_{name}.safetensors")
    task = small_task(name)
    load_released(task, weights_of(file))
    return task, file["tokens"], file


def run_both_ways(task, tokens, queries):
    """Predict by whole clip and frame by frame; the latter stacked along the frames."""
    state, frames = None, []
    for frame in tokens.unbind(1):
        prediction, state = task.step(frame[:, None], None, queries, state)
        frames.append(prediction)
    stacked = {key: torch.stack([part[key] for part in frames], task.frame_axis) for key in frames[0]}
    return task(tokens[:, :, None], None, queries), stacked


@pytest.mark.parametrize("name", CORES)
@torch.no_grad()
def test_a_core_reproduces_the_released_one_by_clip_and_by_frame(shared_dir, name):
    file = load_file(shared_dir / f"fixtures/core_{name}.safetensors")
    core = build_core(name, embed_dim=32, num_layers=2, num_heads=4).eval()
    load_released(core, weights_of(file))
    torch.testing.assert_close(core(file["tokens"])[0], file["output"], **GOLDEN)
    state = None
    for t in range(5):
        output, state = core.step(file["tokens"][:, t], state)
        torch.testing.assert_close(output, file["output"][:, t], **GOLDEN)


@pytest.mark.parametrize(
    ("name", "key"), [("classification", "logits"), ("depth", "depth"), ("camera_pose", "camera_motion")]
)
@torch.no_grad()
def test_a_task_that_reads_frames_reproduces_the_released_one(shared_dir, name, key):
    task, tokens, file = golden_task(shared_dir, name)
    for predictions in run_both_ways(task, tokens, {}):
        torch.testing.assert_close(predictions[key], file["output"], **GOLDEN)


@torch.no_grad()
def test_point_tracking_reproduces_the_released_one(shared_dir):
    task, tokens, file = golden_task(shared_dir, "point_tracking")
    for predictions in run_both_ways(task, tokens, {"points": file["query_point"][:, None]}):
        torch.testing.assert_close(predictions["points"][:, 0], file["output.pred_points"], **GOLDEN)
        torch.testing.assert_close(predictions["visibility_logits"][:, 0], file["output.pred_visibility"], **GOLDEN)
        torch.testing.assert_close(predictions["uncertainty_logits"][:, 0], file["output.pred_uncertainty"], **GOLDEN)


def box_steps(task, tokens, file, *, is_forced):
    """Track the golden box; forced means that every frame starts from the released model's last box."""
    state, boxes = task.init_stream(2, 16, num_queries=1), []
    last = file["init_box"][:, None]
    for t in range(5):
        # Age one: the state's box is the start, so that center and size are not rounded on their way from corners.
        state = TaskState(state.core, (torch.ones(2, dtype=torch.int64), last))
        predictions, state = task.step(tokens[:, t, None], None, {"boxes": torch.zeros(2, 1, 4)}, state)
        boxes.append(to_centers(predictions["boxes"])[:, 0])
        last = file["output"][:, t, None] if is_forced else state.readout[1]
    return torch.stack(boxes, 1)


@torch.no_grad()
def test_box_tracking_reproduces_the_released_one_frame_by_frame(shared_dir):
    task, tokens, file = golden_task(shared_dir, "box_tracking")
    torch.testing.assert_close(box_steps(task, tokens, file, is_forced=True), file["output"], **GOLDEN)


@torch.no_grad()
def test_the_released_box_head_amplifies_rounding_until_tracks_part(shared_dir):
    task, tokens, file = golden_task(shared_dir, "box_tracking")
    errors = (box_steps(task, tokens, file, is_forced=False) - file["output"]).abs().amax((0, 2))
    # A box goes back in through sines of up to 2^15 pi x, so a difference in the last bit grows a thousandfold a frame:
    # running on its own boxes, this model cannot be reproduced by any other order of operations.
    assert errors[0] < 1e-5
    assert errors[1] > 10 * errors[0]
    assert errors[2] > 10 * errors[1]


@pytest.mark.parametrize("name", CORES)
def test_an_exported_core_loads_into_another(name):
    first, second = (build_core(name, embed_dim=16, num_layers=1, num_heads=2) for _ in range(2))
    load_released(second, export_released(first))
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", TASKS)
def test_an_exported_task_loads_into_another_with_the_prefix_of_lightning(name):
    first, second = (small_task(name, num_depths=2, readout_dim=16) for _ in range(2))
    with torch.no_grad():
        for key, value in first.state_dict().items():
            if key.endswith("freqs"):
                continue  # computed, and refused if other
            value.copy_(torch.randn(value.shape) if value.is_floating_point() else value + 3)
    exported = {f"model.{key}": value for key, value in export_released(first).items()}
    assert any(key.startswith("model.encoder.interm_mlps.1.bn.running_mean") for key in exported)
    load_released(second, exported)
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_one_error_lists_everything_that_does_not_fit_and_nothing_is_loaded():
    core = build_core("mamba", embed_dim=16, num_layers=1)
    before = {key: value.clone() for key, value in core.state_dict().items()}
    tensors = export_released(build_core("mamba", embed_dim=16, num_layers=1))
    del tensors["output_norm.bias"], tensors["mamba_blocks.0.mamba.D"]
    tensors |= {"stranger": torch.zeros(2), "other": torch.zeros(3), "output_norm.weight": torch.zeros(5)}
    with pytest.raises(VidflowError) as error:
        load_released(core, tensors)
    for line in (
        "missing: output_norm.bias (16,)",
        "missing: mamba_blocks.0.mamba.D (32,)",
        "unexpected: stranger (2,)",
        "unexpected: other (3,)",
        "output_norm.weight is (5,), wanted (16,)",
    ):
        assert line in str(error.value)
    torch.testing.assert_close(core.state_dict(), before, rtol=0, atol=0)


def spoilt(tensors):
    """The tensors of a small core with every kind of fault, and what is to be said of each."""
    bad = dict(tensors)
    half, whole = torch.zeros(32), torch.arange(16.0)
    bad["output_norm.weight"], bad["output_norm.bias"] = half[:16], half[8:24]
    faults = {"output_norm.weight and output_norm.bias": "share memory"}
    for name, value, fault in [
        ("norm.weight", torch.full((16,), torch.nan), "holds NaN or infinite numbers in float32"),
        ("norm.bias", whole.double() + 1e300, "holds NaN or infinite numbers in float32"),
        ("mamba.A_log", torch.empty((32, 16), device="meta"), "is on the meta device"),
        ("mamba.D", torch.zeros(1).expand(32), "is an expanded view"),
        ("mamba.conv1d.bias", torch.zeros(32).to_sparse(), "is quantized, nested or sparse"),
        ("mamba.dt_proj.bias", torch.zeros(32, dtype=torch.int8), "is int8, wanted float64, float32"),
        ("mamba.out_proj.weight", torch.zeros(16, 32, dtype=torch.complex64), "is complex64, wanted"),
        (
            "mamba.in_proj.weight",
            torch.quantize_per_tensor(torch.zeros(64, 16), 1.0, 0, torch.qint8),
            "is quantized, nested or sparse",
        ),
    ]:
        bad[f"mamba_blocks.0.{name}"], faults[f"mamba_blocks.0.{name}"] = value, fault
    assert bad.keys() == tensors.keys()
    return bad, faults


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says that quantized tensors will go
def test_tensors_without_sound_values_are_all_listed_before_the_first_is_copied():
    core = build_core("mamba", embed_dim=16, num_layers=1)
    before = {key: value.clone() for key, value in core.state_dict().items()}
    bad, faults = spoilt(export_released(build_core("mamba", embed_dim=16, num_layers=1)))
    with pytest.raises(VidflowError, match=rf"\({len(faults)} problems\)") as error:
        load_released(core, bad)
    for name, fault in faults.items():
        assert f"{name} {fault}" in str(error.value)
    torch.testing.assert_close(core.state_dict(), before, rtol=0, atol=0)


def test_views_of_the_modules_own_tensors_under_other_names_are_copied_right():
    core = build_core("mamba", embed_dim=16, num_layers=1)
    own, before = core.state_dict(), export_released(core)
    load_released(
        core, own | {"output_norm.weight": own["output_norm.bias"], "output_norm.bias": own["output_norm.weight"]}
    )
    after = core.state_dict()
    assert torch.equal(after["output_norm.weight"], before["output_norm.bias"])
    assert torch.equal(after["output_norm.bias"], before["output_norm.weight"])


def test_a_module_without_memory_takes_no_weights():
    tensors = export_released(build_core("mamba", embed_dim=16, num_layers=1))
    with torch.device("meta"):
        core = build_core("mamba", embed_dim=16, num_layers=1)
    with pytest.raises(VidflowError, match=r"output_norm.weight has no place to go"):
        load_released(core, tensors)


def test_counters_are_whole_numbers():
    task = small_task("classification", num_depths=2)
    name = "encoder.interm_mlps.0.bn.num_batches_tracked"
    with pytest.raises(VidflowError, match=f"{name} is float32, wanted int64"):
        load_released(task, export_released(task) | {name: torch.tensor(1.0)})


def test_running_statistics_are_as_necessary_as_parameters():
    task = small_task("classification", num_depths=2)
    tensors = export_released(task)
    del tensors["encoder.interm_mlps.0.bn.running_var"]
    with pytest.raises(VidflowError, match=r"missing: encoder.interm_mlps.0.bn.running_var"):
        load_released(task, tensors)


@torch.no_grad()
def test_what_is_computed_may_be_absent(shared_dir):
    file = load_file(shared_dir / "fixtures/task_point_tracking.safetensors")
    tensors = weights_of(file)
    del tensors["fourier_enc.freqs"]
    task = small_task("point_tracking")
    load_released(task, tensors)
    points = task(file["tokens"][:, :, None], None, {"points": file["query_point"][:, None]})["points"]
    torch.testing.assert_close(points[:, 0], file["output.pred_points"], **GOLDEN)
    boxes = small_task("box_tracking", num_depths=2)
    exported = export_released(boxes)
    computed = [key for key in exported if key.endswith(("num_batches_tracked", "fourier_enc.freqs"))]
    assert len(computed) == 3
    load_released(boxes, {key: value for key, value in exported.items() if key not in computed})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_frequencies_that_are_there_must_be_those_that_are_computed(dtype):
    task, name = small_task("box_tracking"), "bbox_query_encoder.fourier_enc.freqs"
    tensors = export_released(task)
    load_released(task, tensors | {name: tensors[name].to(dtype)})
    before = export_released(task)
    with pytest.raises(VidflowError, match=rf"{name} is \[2.0, 4.0.*, but BoxTrackingTask computes \[1.0, 2.0"):
        load_released(task, {key: value + 1 for key, value in tensors.items()} | {name: (2 * tensors[name]).double()})
    torch.testing.assert_close(export_released(task), before, rtol=0, atol=0)


def test_the_frozen_encoder_and_the_loss_of_a_checkpoint_are_passed_over():
    task = small_task("camera_pose")
    tensors = export_released(task)
    del tensors["loss_fn.log_variances"]
    tensors |= {"encoder.backbone.norm.weight": torch.zeros(4), "loss_fn.s_t": torch.zeros(())}
    load_released(task, tensors)


def jax_arrays(width, num_heads, num_layers, generator):
    """Random arrays with the names and shapes of RVM's recurrent core."""
    head = width // num_heads

    def normal(*shape):
        return generator.normal(size=shape).astype(np.float32) / np.sqrt(width)

    arrays = {
        f"rnn_core/{gate}_{kind}/kernel": normal(width, width)
        for gate in ("input", "state")
        for kind in ("update", "reset")
    }
    arrays |= {"rnn_core/state_layer_norm/scale": normal(width), "encoder/LayerNorm_0/scale": normal(width)}
    norms = ["rnn_core/transformer/output_norm"]
    for layer in range(num_layers):
        block = f"rnn_core/transformer/xa_blocks_{layer}"
        norms += [f"{block}/{norm}" for norm in ("attention_norm", "ca_attention_norm", "mlp_norm")]
        for attention in ("attention", "ca_attention"):
            for part in ("query", "key", "value"):
                arrays[f"{block}/{attention}/{part}/kernel"] = normal(width, num_heads, head)
                arrays[f"{block}/{attention}/{part}/bias"] = normal(num_heads, head)
            arrays[f"{block}/{attention}/out/kernel"] = normal(num_heads, head, width)
            arrays[f"{block}/{attention}/out/bias"] = normal(width)
        for name, shape in (("dense_in", (width, 4 * width)), ("dense_out", (4 * width, width))):
            arrays[f"{block}/mlp/{name}/kernel"], arrays[f"{block}/mlp/{name}/bias"] = normal(*shape), normal(shape[1])
    for norm in norms:
        arrays[f"{norm}/scale"], arrays[f"{norm}/bias"] = 1 + normal(width), normal(width)
    return arrays


def jax_step(arrays, x, state, num_layers, variant="rvm"):
    """One frame of RVM's core in numpy, from the arrays as they are laid out in JAX.

    `released`: with the epsilon and the GELU that the frozen-encoder paper has.
    """

    def norm(name, value, eps=1e-6):
        value = (value - value.mean(-1, keepdims=True)) / np.sqrt(value.var(-1, keepdims=True) + eps)
        return value * arrays[f"{name}/scale"] + arrays.get(f"{name}/bias", 0)

    def attend(name, query, memory):
        q, k, v = (
            np.einsum("nd,dhe->nhe", source, arrays[f"{name}/{part}/kernel"]) + arrays[f"{name}/{part}/bias"]
            for part, source in (("query", query), ("key", memory), ("value", memory))
        )
        scores = np.exp(np.einsum("qhe,khe->hqk", q, k) / np.sqrt(q.shape[-1]))
        mixed = np.einsum("hqk,khe->qhe", scores / scores.sum(-1, keepdims=True), v)
        return np.einsum("qhe,hed->qd", mixed, arrays[f"{name}/out/kernel"]) + arrays[f"{name}/out/bias"]

    def gate(kind):
        raw = x @ arrays[f"rnn_core/input_{kind}/kernel"] + state @ arrays[f"rnn_core/state_{kind}/kernel"]
        return 1 / (1 + np.exp(-raw))

    update, z = gate("update"), x
    memory = gate("reset") * norm("rnn_core/state_layer_norm", state, 1e-4 if variant == "rvm" else 1e-6)
    for layer in range(num_layers):
        block = f"rnn_core/transformer/xa_blocks_{layer}"
        z = z + attend(f"{block}/ca_attention", norm(f"{block}/ca_attention_norm", z), memory)
        hidden = (
            norm(f"{block}/mlp_norm", z) @ arrays[f"{block}/mlp/dense_in/kernel"] + arrays[f"{block}/mlp/dense_in/bias"]
        )
        if variant == "rvm":
            hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        else:
            hidden = 0.5 * hidden * (1 + torch.from_numpy(hidden / np.sqrt(2)).erf().numpy())
        z = z + hidden @ arrays[f"{block}/mlp/dense_out/kernel"] + arrays[f"{block}/mlp/dense_out/bias"]
        normed = norm(f"{block}/attention_norm", z)
        z = z + attend(f"{block}/attention", normed, normed)
    return (1 - update) * state + update * norm("rnn_core/transformer/output_norm", z)


@torch.no_grad()
def test_arrays_in_the_layout_of_rvm_give_the_core_that_jax_would_run():
    generator = np.random.default_rng(0)
    arrays = jax_arrays(16, 4, 2, generator)
    assert rvm_num_heads(arrays) == 4
    core = build_core("gated_transformer", embed_dim=16, num_layers=2, num_heads=4, gated_variant="rvm").eval()
    load_rvm(core, arrays)
    clip, state = generator.normal(size=(3, 5, 16)).astype(np.float32), np.zeros((5, 16), np.float32)
    output, _ = core(torch.from_numpy(clip)[None])
    for t in range(3):
        state = jax_step(arrays, clip[t], state, 2)
        torch.testing.assert_close(output[0, t], torch.from_numpy(state).float(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_core_as_in_the_paper_takes_the_arrays_of_rvm_and_keeps_its_output_norm():
    generator = np.random.default_rng(0)
    arrays = jax_arrays(16, 4, 2, generator)
    core = build_core("gated_transformer", embed_dim=16, num_layers=2, num_heads=4).eval()
    core.state_layer_norm.bias.fill_(3)
    core.output_norm.weight.copy_(torch.rand(16))
    load_rvm(core, arrays)
    clip, state = 0.1 * generator.normal(size=(3, 5, 16)).astype(np.float32), np.zeros((5, 16), np.float32)
    output, _ = core(torch.from_numpy(clip)[None])
    for t in range(3):
        state = jax_step(arrays, clip[t], state, 2, variant="released")
        memory = torch.from_numpy(state).float()
        wanted = functional.layer_norm(memory, [16], core.output_norm.weight, None, 1e-5)
        torch.testing.assert_close(output[0, t], wanted, rtol=1e-4, atol=1e-5)


def rvm_task(variant):
    torch.manual_seed(0)
    core = build_core("gated_transformer", embed_dim=16, num_layers=2, num_heads=4, gated_variant=variant)
    return build_task("classification", core, TaskOptions(num_classes=3, readout_dim=16, readout_heads=4))


@pytest.mark.parametrize("variant", ["released", "rvm"])
def test_a_checkpoint_of_the_readout_alone_gets_its_core_from_the_arrays_of_rvm(variant):
    arrays = jax_arrays(16, 4, 2, np.random.default_rng(0))
    trained, task = rvm_task(variant), rvm_task(variant)
    with torch.no_grad():
        for value in trained.parameters():
            value.add_(torch.rand(value.shape))
    load_rvm(trained.core, arrays)
    frozen = {f"sequential_core.{key}" for key in trained.core.state_dict() if not key.startswith("output_norm.")}
    tensors = {f"model.{key}": value for key, value in export_released(trained).items() if key not in frozen}
    with pytest.raises(VidflowError, match=r"does not hold the core's transformer; .*rvm=arrays"):
        load_released(task, tensors)
    load_released(task, tensors, rvm=arrays)
    torch.testing.assert_close(task.state_dict(), trained.state_dict(), rtol=0, atol=0)


def test_arrays_of_rvm_are_no_second_core():
    arrays, task = jax_arrays(16, 4, 2, np.random.default_rng(0)), rvm_task("released")
    with pytest.raises(VidflowError, match=r"holds the core itself \(sequential_core.*leave out rvm"):
        load_released(task, export_released(task), rvm=arrays)
    readout = {key: value for key, value in export_released(task).items() if key.startswith("readout.")}
    # The paper trains the output norm of the core with the readout.
    with pytest.raises(VidflowError, match=r"missing: sequential_core\.output_norm\.weight"):
        load_released(task, readout, rvm=arrays)
    with pytest.raises(VidflowError, match=r"the core is a MambaCore; wanted a gated transformer"):
        load_released(small_task("classification"), {}, rvm=arrays)


def test_arrays_that_do_not_fit_are_listed():
    arrays = jax_arrays(16, 4, 2, np.random.default_rng(0))
    core = build_core("gated_transformer", embed_dim=16, num_layers=3, num_heads=4, gated_variant="rvm")
    with pytest.raises(VidflowError, match=r"missing: transformer.layers.2.ca_norm.weight"):
        load_rvm(core, arrays)
    with pytest.raises(VidflowError, match="the core has 2 heads, RVM's arrays 4"):
        load_rvm(build_core("gated_transformer", embed_dim=16, num_layers=2, num_heads=2, gated_variant="rvm"), arrays)
    with pytest.raises(VidflowError, match="array foo is"):
        load_rvm(core, arrays | {"rnn_core/foo": np.zeros(3)})
    for name, array in {
        "input_update/kernel": np.zeros((16, 16, 1), np.float32),
        "input_update/bias": np.zeros(16, complex),
        "input_reset/bias": np.array(["a"]),
    }.items():
        with pytest.raises(VidflowError, match=f"array {name} is .*; wanted one of a flax module"):
            load_rvm(core, arrays | {f"rnn_core/{name}": array})
    with pytest.raises(VidflowError, match="array input_update/scale is also there under the name"):
        load_rvm(core, arrays | {"rnn_core/input_update/scale": np.zeros(16, np.float32)})
    query = "rnn_core/transformer/xa_blocks_0/attention/query/bias"
    with pytest.raises(VidflowError, match="wanted three of one shape"):
        load_rvm(core, arrays | {query: np.zeros((2, 4), np.float32)})
    key = "rnn_core/transformer/xa_blocks_0/attention/out/kernel"
    with pytest.raises(VidflowError, match=r"array transformer/xa_blocks_0/attention/out/kernel is \(16,\)"):
        load_rvm(core, arrays | {key: np.zeros(16)})
    with pytest.raises(VidflowError, match="not a checkpoint of RVM"):
        rvm_num_heads({})


def test_what_is_no_file_of_tensors_is_refused():
    task = small_task("camera_pose")
    tensors = export_released(task)
    with pytest.raises(VidflowError, match="state_dict: no tensors; of a Lightning file give"):
        load_released(task, {"state_dict": tensors})
    name = next(iter(tensors))
    with pytest.raises(VidflowError, match=r"present with and without the prefix `model\.`"):
        load_released(task, tensors | {f"model.{name}": tensors[name]})
