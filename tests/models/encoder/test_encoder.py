"""The frozen encoder: what it refuses, what it loads, and that it computes what timm does."""

import random
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from vidflow.errors import VidflowError
from vidflow.models.encoder import FrozenEncoder, build_encoder, check_name, patch_size_of, resolve_depths, skeleton
from vidflow.models.encoder.loading import load_weights


def tiny_encoder(**settings: object) -> FrozenEncoder:
    defaults = {"name": "test_vit2", "weights": "random:0", "img_size": 64}
    return build_encoder(**(defaults | settings))  # type: ignore[arg-type]


def random_frames(batch: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch16_dinov3", "test_vit", "test_vit3"]
)
def test_tokens_are_timms_features_of_the_normalised_frames(name: str) -> None:
    encoder = tiny_encoder(name=name)
    frames = random_frames(2, 64)
    encoded = encoder(frames)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    wanted = encoder.vit.forward_features((frames.permute(0, 3, 1, 2) / 255 - mean) / std)
    # float32 rounding of the folded normalisation, amplified by the blocks.
    torch.testing.assert_close(encoded.tokens[:, 0], wanted[:, encoder.num_prefix_tokens :], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoded.prefix, wanted[:, : encoder.num_prefix_tokens], atol=1e-4, rtol=1e-4)


def test_several_depths_come_in_ascending_order_with_the_prefix_of_the_last() -> None:
    encoder = tiny_encoder(depths=[-1, 0])
    encoded = encoder(random_frames(2, 64))
    assert encoder.depths == [0, encoder.depth - 1]
    assert encoded.tokens.shape == (2, 2, 16, encoder.embed_dim)
    last = tiny_encoder()(random_frames(2, 64))
    assert torch.equal(encoded.tokens[:, 1], last.tokens[:, 0])
    assert torch.equal(encoded.prefix, last.prefix)


def test_a_frame_alone_has_the_features_it_has_in_a_batch() -> None:
    encoder = tiny_encoder()
    frames = random_frames(5, 64)
    alone = torch.cat([encoder(frame[None]).tokens for frame in frames])
    # Other batch sizes take other matrix kernels; float32 rounding only.
    torch.testing.assert_close(encoder(frames).tokens, alone, atol=1e-5, rtol=1e-5)


def test_the_encoder_is_frozen() -> None:
    encoder = tiny_encoder()
    assert not encoder.vit.training
    assert not any(parameter.requires_grad for parameter in encoder.vit.parameters())
    assert not encoder(random_frames(1, 64)).tokens.requires_grad


@pytest.mark.parametrize("name", ["test_vit2", "vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2"])
def test_random_weights_repeat_leave_the_global_generator_alone_and_are_all_initialised(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    side = 56 if "patch14" in name else 64
    # Deterministic mode fills memory that nobody initialises with NaN.
    torch.use_deterministic_algorithms(True)
    try:
        first = tiny_encoder(name=name, img_size=side, weights="random:3")
    finally:
        torch.use_deterministic_algorithms(False)
    second = tiny_encoder(name=name, img_size=side, weights="random:3")
    other = tiny_encoder(name=name, img_size=side, weights="random:4")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.weights_sha256 == second.weights_sha256 != other.weights_sha256
    tokens = first(random_frames(1, side)).tokens
    assert torch.isfinite(tokens).all()
    assert torch.equal(tokens, second(random_frames(1, side)).tokens)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_checkpoint_round_trips_and_its_classifier_is_left_unread(tmp_path: Path, suffix: str) -> None:
    encoder = tiny_encoder()
    path = tmp_path / f"weights{suffix}"
    state = encoder.vit.state_dict() | {"head.weight": torch.zeros(10, encoder.embed_dim), "head.bias": torch.zeros(10)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert tiny_encoder(weights=str(path)).weights_sha256 == encoder.weights_sha256


def test_a_checkpoint_that_does_not_fit_lists_every_tensor(tmp_path: Path) -> None:
    state = tiny_encoder().vit.state_dict()
    del state["blocks.0.norm1.weight"], state["patch_embed.proj.bias"]
    state["blocks.99.norm1.weight"] = torch.zeros(1)
    state["blocks.0.norm2.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(VidflowError) as caught:
        tiny_encoder(weights=str(tmp_path / "weights.safetensors"))
    message = str(caught.value)
    for part in (
        "missing blocks.0.norm1.weight",
        "missing patch_embed.proj.bias",
        "unexpected blocks.99.norm1.weight",
        "(7,)",
    ):
        assert part in message


def test_a_checkpoint_of_another_patch_size_is_refused_rather_than_resampled(tmp_path: Path) -> None:
    vit = timm.create_model("test_vit2", num_classes=0, img_size=64, patch_size=8)
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(VidflowError, match="another architecture"):
        tiny_encoder(weights=str(tmp_path / "weights.safetensors"))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"norm.weight": Path("anything but a tensor")}, tmp_path / "weights.pt")
    with pytest.raises(VidflowError, match="cannot be read"):
        tiny_encoder(weights=str(tmp_path / "weights.pt"))


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"\x08\0\0")
    with pytest.raises(VidflowError, match=r"weights\.safetensors cannot be read"):
        tiny_encoder(weights=str(tmp_path / "weights.safetensors"))


def test_a_position_embedding_of_another_grid_is_resampled_as_timm_does(tmp_path: Path) -> None:
    small = tiny_encoder()
    save_file(small.vit.state_dict(), tmp_path / "weights.safetensors")
    large = tiny_encoder(weights=str(tmp_path / "weights.safetensors"), img_size=96)
    small.vit.set_input_size((96, 96))
    assert torch.equal(large.vit.pos_embed, small.vit.pos_embed)
    assert large.grid == (6, 6)


def test_a_nearly_right_name_gets_the_right_one_proposed() -> None:
    with pytest.raises(VidflowError, match="vit_small_patch14_dinov2"):
        check_name("vit_smal_patch14_dinov2")


def test_a_model_that_is_no_vision_transformer_is_refused() -> None:
    with pytest.raises(VidflowError, match="not a plain vision transformer"):
        check_name("resnet50")


def test_an_unknown_tag_gets_the_known_ones_listed() -> None:
    with pytest.raises(VidflowError, match="augreg_in21k"):
        check_name("vit_tiny_patch16_224.no_such_tag")


def test_a_size_between_two_multiples_names_both() -> None:
    with pytest.raises(VidflowError, match="64 or 80"):
        tiny_encoder(img_size=70)


def test_a_skeleton_has_the_published_size_unless_told_otherwise() -> None:
    # 384 is no multiple of 14: the published model cuts a rim off, which frames of ours may not have.
    published = skeleton("vit_so400m_patch14_siglip_384")
    assert (patch_size_of(published), len(published.blocks)) == (14, 27)
    vit = skeleton("vit_tiny_patch16_224")
    assert vit.pos_embed.is_meta
    assert vit.pos_embed.shape == (1, 1 + 14 * 14, 192)
    assert skeleton("vit_tiny_patch16_224", 64).pos_embed.shape == (1, 1 + 4 * 4, 192)


@pytest.mark.parametrize("depths", [[], [2], [-3], [0, 0], [1, -1]])
def test_depths_out_of_range_or_named_twice_are_refused(depths: list[int]) -> None:
    with pytest.raises(VidflowError, match=r"got the depths"):
        resolve_depths(depths, num_blocks=2)


def test_frames_of_another_size_or_type_are_a_misuse() -> None:
    encoder = tiny_encoder()
    with pytest.raises(ValueError, match="wanted uint8"):
        encoder(random_frames(1, 32))
    with pytest.raises(ValueError, match="float32"):
        encoder(random_frames(1, 64).float())


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch14_dinov2"])
def test_bfloat16_stays_near_float32_and_keeps_the_rotary_angles_exact(name: str) -> None:
    side = 64 if "patch16" in name else 56
    exact, half = (tiny_encoder(name=name, img_size=side, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert exact.weights_sha256 == half.weights_sha256
    frames = random_frames(2, side)
    first, second = exact(frames).tokens, half(frames).tokens.float()
    # bfloat16 has 8 bits: 0.4% per operation, accumulated over 12 blocks.
    assert torch.nn.functional.cosine_similarity(first, second, dim=-1).min() > 0.999
    if "dinov3" in name:
        assert torch.equal(exact.vit.rope.get_embed(), half.vit.rope.get_embed())


def test_mean_and_std_can_be_given_for_weights_that_want_others() -> None:
    encoder = tiny_encoder(mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0])
    assert encoder.describe()["mean"] == [0.1, 0.2, 0.3]
    assert not torch.equal(encoder(random_frames(1, 64)).tokens, tiny_encoder()(random_frames(1, 64)).tokens)


@pytest.mark.parametrize(("img_size", "grid"), [(112, 8), (126, 9)])
def test_real_weights_of_518_pixels_load_at_smaller_sizes(shared_dir: Path, img_size: int, grid: int) -> None:
    weights = shared_dir / "weights" / "vit_small_patch14_saliency_fp16.safetensors"
    encoder = tiny_encoder(name="vit_small_patch14_dinov2", weights=str(weights), img_size=img_size, depths=[9, 11])
    assert encoder.grid == (grid, grid)
    assert encoder.mean == (0.485, 0.456, 0.406)
    encoded = encoder(random_frames(1, img_size))
    assert encoded.tokens.shape == (1, 2, grid * grid, 384)
    assert torch.isfinite(encoded.tokens).all()


def test_weights_without_sound_values_are_all_listed(tmp_path: Path) -> None:
    state = tiny_encoder().vit.state_dict()
    state["blocks.1.norm1.weight"][0] = torch.nan
    state["blocks.1.norm1.bias"][0] = -torch.inf
    state["blocks.0.norm1.bias"] = state["blocks.0.norm1.bias"].int()
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(VidflowError, match="3 tensors differ") as caught:
        tiny_encoder(weights=str(tmp_path / "weights.safetensors"))
    for part in (
        "blocks.1.norm1.weight holds NaN",
        "blocks.1.norm1.bias holds NaN or infinite",
        "blocks.0.norm1.bias is int32, wanted",
    ):
        assert part in str(caught.value)


def test_pickles_of_tensors_without_plain_values_are_refused(tmp_path: Path) -> None:
    state, path = tiny_encoder().vit.state_dict(), tmp_path / "weights.pt"
    bad = {
        "blocks.1.norm1.weight": torch.empty_like(state["blocks.1.norm1.weight"], device="meta"),
        "blocks.1.norm1.bias": state["blocks.1.norm1.bias"].to_sparse(),
        "blocks.0.norm1.bias": torch.zeros(1).expand(state["blocks.0.norm1.bias"].shape),
        "blocks.0.norm1.weight": state["blocks.0.norm2.weight"],
    }
    torch.save(state | bad, path)
    with pytest.raises(VidflowError) as caught:
        tiny_encoder(weights=str(path))
    for part in ("meta device", "sparse", "expanded view", "blocks.0.norm1.weight and blocks.0.norm2.weight share"):
        assert part in str(caught.value)
    for other in ([1, 2], "text", {1: torch.zeros(1)}, {"model": {"a": 3}}, {"model": torch.zeros(3)}, torch.zeros(2)):
        torch.save(other, path)
        with pytest.raises(VidflowError, match=r"weights\.pt"):
            tiny_encoder(weights=str(path))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", "-legacy.pt"])
def test_a_damaged_checkpoint_is_one_message_or_finite_weights(tmp_path: Path, suffix: str) -> None:
    encoder, path = tiny_encoder(), tmp_path / f"weights{suffix}"
    state = encoder.vit.state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization="legacy" not in suffix)
    good, generator = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(50):
        bad = bytearray(good)
        # Headers and pickles lie at the start.
        bad[generator.randrange(generator.choice([200, 4000, len(bad)]))] = generator.randrange(256)
        path.write_bytes(bad)
        try:
            load_weights(encoder.vit, path, name=encoder.name)
        except VidflowError as error:
            refused += 1
            if str(path) not in str(error):
                raise
        assert all(value.isfinite().all() for value in encoder.vit.state_dict().values())
    assert refused > 5
