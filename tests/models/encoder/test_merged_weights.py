"""Merged adapters: exact weights, a file that loads as a frozen encoder, reduction with offsets, streams."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapted_encoder import ALL, T, adapt, build_vit, clips, freeze, joined
from torch import Tensor

from vidflow.config.schema import Adaptation, Config, Encoder, FeatureSet, Reducer, Sampling, Trial, Trials, Video
from vidflow.errors import VidflowError
from vidflow.models.encoder import FrozenEncoder, build_encoder
from vidflow.models.encoder.adapted import AdaptedEncoder, build_adapted, merge_adapted
from vidflow.models.encoder.adapted.merge import fold_adapters
from vidflow.models.encoder.attention import attend, attend_eagerly
from vidflow.models.encoder.checks import merged_problems
from vidflow.models.encoder.clip_blocks import HeadOffsets, shift_heads
from vidflow.models.encoder.merged_file import read_record
from vidflow.models.encoder.streamed import reset_streams
from vidflow.models.reduction.bipartite import BlockBipartite
from vidflow.models.reduction.build import build_reducer
from vidflow.models.streaming import StreamingModel

SMALL = Encoder(name="vit_tiny_patch16_224", weights="random:1", img_size=32)
CAUSAL = {"offsets": [-1, -2, 0], "temporal_embedding": False}


def merge(encoder: AdaptedEncoder, **options: Any) -> FrozenEncoder:
    """Return the frozen encoder of a trained one, without a file."""
    vit, parts = fold_adapters(encoder)
    options = {"dtype": encoder.frozen.dtype, "depths": encoder.frozen.depths, **options}
    return freeze(vit, parts=parts, normalize=encoder.frozen.normalize_depths, **options)


def all_tokens(encoder: FrozenEncoder, frames: Tensor) -> Tensor:
    encoded = encoder.encode(frames)
    tokens = torch.cat([encoded.prefix, encoded.tokens[:, -1]], dim=1)
    return tokens.unflatten(0, (frames.shape[0], -1))


@pytest.mark.parametrize("name", ALL)
def test_the_merged_encoder_equals_the_trained_one(name: str) -> None:
    vit = build_vit(name)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        encoder = adapt(freeze(vit, dtype=dtype), trained=True, scale=0.5, offsets=[-1, 1, 0]).to(dtype)
        frames = clips(encoder.frozen)
        found, wanted = all_tokens(merge(encoder), frames), joined(encoder, frames)
        assert float((found - wanted).abs().max() / wanted.std()) < tolerance


def test_merging_keeps_the_names_of_the_stock_model_and_adds_only_the_biases_that_it_lacks() -> None:
    for name, added in (("vit_tiny_patch16_224", set()), ("vit_small_patch16_dinov3", {"attn.qkv.bias"})):
        encoder = adapt(freeze(build_vit(name)), trained=True)
        stock, merged = encoder.frozen.vit.state_dict(), fold_adapters(encoder)[0].state_dict()
        assert stock.keys() <= merged.keys()
        assert {key.partition(".")[2].partition(".")[2] for key in merged.keys() - stock.keys()} == added


def test_dropout_acts_in_training_only() -> None:
    encoder = adapt(freeze(build_vit("vit_tiny_patch16_224")), trained=True, dropout=0.5)
    frames = clips(encoder.frozen)
    wanted = all_tokens(merge(encoder), frames)
    torch.testing.assert_close(joined(encoder, frames), wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(joined(encoder.train(), frames), wanted, atol=1e-2)


def merged_file(folder: Path, settings: Encoder = SMALL, **adaptation: Any) -> tuple[AdaptedEncoder, Path]:
    """Train nothing, but move every trained value, and merge into a file."""
    torch.manual_seed(0)
    adaptation = {"offsets": [-1, 1, 0], "dropout": 0.0, **adaptation}
    encoder = build_adapted(settings, Adaptation(**adaptation), num_frames=T).eval()
    for parameter in encoder.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    path = folder / "merged.safetensors"
    path.write_bytes(merge_adapted(encoder, trial="0123"))
    return encoder, path


def load(path: Path, settings: Encoder = SMALL, **options: Any) -> FrozenEncoder:
    return build_encoder(name=settings.name, weights=str(path), img_size=settings.img_size, **options)


def test_a_merged_file_is_an_encoder_of_whole_clips_that_knows_where_it_comes_from(tmp_path: Path) -> None:
    trained, path = merged_file(tmp_path, scale=0.5)
    encoder = load(path)
    frames = clips(encoder, batch=3)
    wanted = all_tokens(encoder, frames)
    torch.testing.assert_close(wanted, joined(trained, frames), atol=1e-5, rtol=1e-4)
    # Features depend neither on the size of the batch nor on the clips beside.
    torch.testing.assert_close(all_tokens(encoder, frames[1:2]), wanted[1:2], atol=1e-5, rtol=1e-4)
    assert (encoder.num_frames, encoder.is_causal) == (T, False)
    assert encoder.describe()["clip_parts"]["offsets"] == [-1, 1, 0]
    record = read_record(path)
    assert record is not None
    assert (record.base_sha256, record.trial) == (trained.frozen.weights_sha256, "0123")
    assert (record.scale, record.rank, record.num_frames) == (0.5, 48, T)
    assert encoder.weights_sha256 != trained.frozen.weights_sha256
    with pytest.raises(VidflowError, match="trained with a temporal embedding of 5"):
        encoder.encode(frames[:, :3])
    with pytest.raises(ValueError, match="say how many a clip has"):
        encoder(frames[0])


@pytest.mark.parametrize(
    "settings",
    [
        Encoder(name="eva02_tiny_patch14_224", weights="random:1", img_size=28),  # biases of queries and values only
        Encoder(name="vit_small_patch16_dinov3", weights="random:1", img_size=32),  # no bias at all
    ],
)
def test_models_without_some_biases_get_them_from_the_file(tmp_path: Path, settings: Encoder) -> None:
    num_heads = 3 if "tiny" in settings.name else 6
    trained, path = merged_file(tmp_path, settings, offsets=[-1] + [0] * (num_heads - 1))
    encoder = load(path, settings)
    frames = clips(encoder, batch=1)
    torch.testing.assert_close(all_tokens(encoder, frames), joined(trained, frames), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_real_encoder_gives_the_same_features_with_merged_adapters(shared_dir: Path, tmp_path: Path) -> None:
    weights = shared_dir / "weights" / "vit_small_patch14_saliency_fp16.safetensors"
    settings = Encoder(name="vit_small_patch14_dinov2", weights=str(weights), img_size=112, dtype="float32")
    trained, path = merged_file(tmp_path, settings, offsets=[-1, 1, 0, 0, 0, 0], scale=0.5)
    encoder = load(path, settings)
    wanted = joined(trained, frames := clips(encoder, batch=1))
    assert float((all_tokens(encoder, frames) - wanted).abs().max() / wanted.std()) < 1e-4


def test_the_offsets_are_part_of_the_digest() -> None:
    frozen = freeze(build_vit("vit_tiny_patch16_224"))
    digests = {merge(adapt(frozen, offsets=offsets)).weights_sha256 for offsets in ([-1, 1, 0], [-1, 0, 0], [0, 0, 0])}
    assert len(digests) == 3


def test_adapters_are_merged_once_and_into_single_precision_only(tmp_path: Path) -> None:
    trained, path = merged_file(tmp_path)
    merged = Encoder(name=SMALL.name, weights=str(path), img_size=32)
    with pytest.raises(VidflowError, match="holds merged adapters already"):
        build_adapted(merged, Adaptation(), num_frames=T)
    half = build_adapted(
        Encoder(name=SMALL.name, weights="random:1", img_size=32, dtype="bfloat16"), Adaptation(), num_frames=T
    )
    with pytest.raises(VidflowError, match="into weights in float32"):
        merge_adapted(half, trial="")
    with pytest.raises(VidflowError, match="holds merged adapters of 'vit_tiny_patch16_224'; set that name"):
        build_encoder(name="vit_small_patch16_224", weights=str(path), img_size=32)
    assert trained.frozen.dtype == torch.float32


def test_sizes_and_padding_travel_with_the_keys_of_reduced_frames() -> None:
    """One bias per head: fused and eager attention against an explicit loop."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = torch.randn(3, 4, 3, 6, 8, generator=generator)
    bias = torch.randn(4, 6, generator=generator)
    offsets = HeadOffsets((-1, 1, 0))
    by_head = shift_heads(bias.unsqueeze(1).expand(-1, 3, -1), offsets, num_frames=4)
    shifted = [shift_heads(each, offsets, num_frames=4) for each in (keys, values)]
    wanted = torch.empty_like(queries)
    for t in range(4):
        for head, offset in enumerate(offsets.by_head):
            source = t + offset if 0 <= t + offset < 4 else t
            logits = queries[t, head] @ keys[source, head].T / 8**0.5 + bias[source]
            wanted[t, head] = logits.softmax(-1) @ values[source, head]
    for attention in (attend, attend_eagerly):
        torch.testing.assert_close(attention(queries, *shifted, by_head), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_tokens_can_be_reduced_inside_an_encoder_whose_heads_read_other_frames(name: str) -> None:
    encoder = adapt(freeze(build_vit(name)), trained=True, offsets=[-1, 1, 0])
    frames = clips(encoder.frozen, batch=2)
    whole = merge(encoder).encode(frames)
    none = merge(encoder, reduction=BlockBipartite(num_merged=0)).encode(frames)
    torch.testing.assert_close(none.tokens, whole.tokens, atol=1e-4, rtol=1e-4)
    some = merge(encoder, reduction=BlockBipartite(num_merged=1)).encode(frames)
    assert some.sizes is not None
    assert torch.equal(some.sizes.sum(-1), torch.full((2 * T, 1), 4.0))
    alone = merge(encoder, reduction=BlockBipartite(num_merged=1)).encode(frames[:1])
    torch.testing.assert_close(alone.tokens, some.tokens[:T], atol=1e-4, rtol=1e-4)
    with pytest.raises(VidflowError, match="encode the frames of a clip together"):
        merge(encoder, reduction=build_reducer("evs", place="input", prune=0.5))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_rope_mixed_224", "separate"])
def test_a_causal_encoder_gives_frame_by_frame_what_it_gives_of_the_whole_clip(name: str) -> None:
    encoder = merge(adapt(freeze(build_vit(name), depths=[1, 2]), trained=True, **CAUSAL))
    assert encoder.is_causal
    frames = clips(encoder, batch=2, num_frames=7)
    wanted = encoder.encode(frames).tokens.clone().unflatten(0, (2, 7))
    state = encoder.init_stream(2)
    size = [part.shape for part in state]
    for t in range(7):
        encoded, state = encoder.step(frames[:, t], state)
        torch.testing.assert_close(encoded.tokens, wanted[:, t], atol=1e-5, rtol=1e-4)
        assert [part.shape for part in state] == size
        if t == 3:  # the second stream starts again
            state = reset_streams(state, torch.tensor([False, True]))
            wanted[1, 4:] = encoder.encode(frames[1:, 4:]).tokens


def test_merged_adapters_alone_stream_with_reduced_tokens() -> None:
    trained = adapt(freeze(build_vit("vit_tiny_patch16_224")), trained=True, temporal_embedding=False)
    encoder = merge(trained, reduction=BlockBipartite(num_merged=1))
    frames = clips(encoder, batch=1)
    wanted, state = encoder.encode(frames), encoder.init_stream(1)
    assert wanted.tokens.shape[2] == 1  # 4 patches, one less after each block
    for t in range(T):
        encoded, state = encoder.step(frames[:, t], state)
        torch.testing.assert_close(encoded.tokens, wanted.tokens[t : t + 1], atol=1e-5, rtol=1e-4)


def test_what_sees_later_frames_cannot_be_encoded_frame_by_frame() -> None:
    frozen = freeze(build_vit("vit_tiny_patch16_224"))
    for settings, message in (
        ({"offsets": [-1, 2, 0]}, r"read later frames \(offsets \+2\)"),
        ({"offsets": [-1, 0, 0]}, "temporal embedding of 5 frames"),
        ({"temporal_embedding": False, "interpolate_after": [1]}, "one frame of each two"),
    ):
        encoder = merge(adapt(frozen, **settings))
        assert not encoder.is_causal
        with pytest.raises(VidflowError, match=message):
            encoder.init_stream(1)


def test_the_state_of_a_stream_holds_that_of_its_encoder(tmp_path: Path) -> None:
    from vidflow.models.cores.build import build_core
    from vidflow.models.tasks import TaskOptions, build_task

    encoder = merge(adapt(freeze(build_vit("vit_tiny_patch16_224")), trained=True, **CAUSAL))
    torch.manual_seed(0)
    core = build_core("mean", embed_dim=48, num_layers=1, num_heads=None)
    task = build_task("classification", core, TaskOptions(num_classes=3, readout_dim=32, readout_heads=4)).eval()
    frames = clips(encoder, batch=1)[0]
    model = StreamingModel(task, encoder)
    wanted = [model.step(frame)["logits"] for frame in frames]
    first, second = StreamingModel(task, encoder), StreamingModel(copy.deepcopy(task), encoder)
    for frame in frames[:3]:
        first.step(frame)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(torch.tensor(second.step(frames[3])["logits"]), torch.tensor(wanted[3]))


def test_a_config_that_does_not_fit_the_file_is_refused_beforehand(tmp_path: Path) -> None:
    _, path = merged_file(tmp_path, interpolate_after=[4])
    config = Config(
        encoder=replace(SMALL, name="vit_small_patch16_224", weights=str(path)),
        video=Video(sampling=Sampling(num_frames=8)),
        features={"base": FeatureSet(reducer=Reducer(name="tome", settings={"num_merged": 1}))},
        adaptations={"again": Adaptation()},
        trials=Trials(trial=Trial(task="depth", feed="shards", adaptation="again")),
    )
    problems = merged_problems(config)
    assert [problem.partition(":")[0] for problem in problems] == [
        "encoder.name",
        "video.sampling.num_frames",
        "trials.trial.adaptation",
        "features.base.reducer",
        "trials.trial.task",
    ]
    fitting = Config(encoder=replace(SMALL, weights=str(path)), video=Video(sampling=Sampling(num_frames=T)))
    assert merged_problems(fitting) == merged_problems(replace(fitting, adaptations={"unused": Adaptation()})) == []
    assert merged_problems(Config(encoder=SMALL)) == []


def test_half_precision_trains_close_to_single_precision() -> None:
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        encoder = adapt(freeze(build_vit("vit_small_patch16_dinov3"), dtype=dtype), trained=True, offsets=[-1, 1, 0])
        tokens, _ = encoder(clips(encoder.frozen))
        tokens.float().square().mean().backward()
        assert all(p.dtype == torch.float32 and p.grad is not None for p in encoder.parameters())
        results.append(tokens.detach().float())
    assert float((results[0] - results[1]).norm() / results[0].norm()) < 0.03  # 8 bits, through three blocks
