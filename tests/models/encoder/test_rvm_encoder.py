"""RVM's image encoder, from arrays in the layout of JAX, against its arithmetic spelled out in numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vidflow.errors import VidflowError
from vidflow.models.encoder import FrozenEncoder, build_encoder, skeleton
from vidflow.models.encoder.rvm import read_rvm, rvm_positions
from vidflow.models.identity import weights_identity

# timm's test_vit: plain, pre-norm, with a class token.
WIDTH, HEADS, LAYERS, HIDDEN, PATCH = 64, 2, 6, 192, 16
Arrays = dict[str, np.ndarray]


def rvm_arrays(
    *, width: int = WIDTH, heads: int = HEADS, layers: int = LAYERS, hidden: int = HIDDEN, seed: int = 0
) -> Arrays:
    """Random arrays with the names and shapes of RVM's image encoder, and some of what lies beside it."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=shape, scale=width**-0.5).astype(np.float32)

    def norm(name: str) -> Arrays:
        return {f"{name}/scale": 1 + normal(width), f"{name}/bias": normal(width)}

    arrays = {"cls_token": normal(1, width), "mask_token": normal(1, width), "decoder/LayerNorm_0/scale": normal(width)}
    arrays["rnn_core/input_update/kernel"] = normal(width, width)
    arrays["tokenizer/patch_embedding/Conv_0/kernel"] = normal(1, PATCH, PATCH, 3, width)
    arrays["tokenizer/patch_embedding/Conv_0/bias"] = normal(width)
    arrays |= norm("encoder/LayerNorm_0")
    for layer in range(layers):
        block = f"encoder/layers_{layer}"
        arrays |= norm(f"{block}/attention_norm") | norm(f"{block}/mlp_norm")
        for part in ("query", "key", "value"):
            arrays[f"{block}/attention/{part}/kernel"] = 2 * normal(width, heads, width // heads)
            arrays[f"{block}/attention/{part}/bias"] = normal(heads, width // heads)
        arrays[f"{block}/attention/out/kernel"] = normal(heads, width // heads, width)
        arrays[f"{block}/attention/out/bias"] = normal(width)
        for name, shape in (("dense_in", (width, hidden)), ("dense_out", (hidden, width))):
            arrays[f"{block}/mlp/{name}/kernel"], arrays[f"{block}/mlp/{name}/bias"] = normal(*shape), normal(shape[1])
    return arrays


def rvm_tokens(arrays: Arrays, image: np.ndarray) -> np.ndarray:
    """Class and patch tokens of an image (H, W, 3) in [0, 1], in double precision."""

    def norm(name: str, value: np.ndarray) -> np.ndarray:
        value = (value - value.mean(-1, keepdims=True)) / np.sqrt(value.var(-1, keepdims=True) + 1e-6)
        return value * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]

    def dense(name: str, value: np.ndarray) -> np.ndarray:
        return value @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]

    def attend(name: str, value: np.ndarray) -> np.ndarray:
        q, k, v = (
            np.einsum("nd,dhe->nhe", value, arrays[f"{name}/{part}/kernel"]) + arrays[f"{name}/{part}/bias"]
            for part in ("query", "key", "value")
        )
        scores = np.exp(np.einsum("qhe,khe->hqk", q, k) / np.sqrt(q.shape[-1]))
        mixed = np.einsum("hqk,khe->qhe", scores / scores.sum(-1, keepdims=True), v)
        return np.einsum("qhe,hed->qd", mixed, arrays[f"{name}/out/kernel"]) + arrays[f"{name}/out/bias"]

    side = image.shape[0] // PATCH
    kernel = arrays["tokenizer/patch_embedding/Conv_0/kernel"][0].astype(float)
    patches = image.astype(float).reshape(side, PATCH, side, PATCH, 3)
    grid = np.einsum("ipjqc,pqcd->ijd", patches, kernel) + arrays["tokenizer/patch_embedding/Conv_0/bias"]
    grid = grid + resized(positions(256, kernel.shape[-1]).reshape(16, 16, -1), side)
    tokens = np.concatenate([arrays["cls_token"], grid.reshape(side * side, -1)])
    for layer in range(LAYERS):
        block = f"encoder/layers_{layer}"
        tokens = tokens + attend(f"{block}/attention", norm(f"{block}/attention_norm", tokens))
        hidden = dense(f"{block}/mlp/dense_in", norm(f"{block}/mlp_norm", tokens))
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        tokens = tokens + dense(f"{block}/mlp/dense_out", hidden)
    return norm("encoder/LayerNorm_0", tokens)


def positions(num_tokens: int, width: int) -> np.ndarray:
    table = np.empty((num_tokens, width))
    for place in range(num_tokens):
        for index in range(width):
            angle = place / 10_000 ** (2 * (index // 2) / width)
            table[place, index] = np.cos(angle) if index % 2 else np.sin(angle)
    return table


def resized(grid: np.ndarray, side: int) -> np.ndarray:
    """Resample (h, h, D) with Keys' cubic of slope -1/2, widened where it shrinks, as jax.image.resize does."""
    scale = len(grid) / side
    centres = (np.arange(side)[:, None] + 0.5) * scale - 0.5
    x = np.abs(centres - np.arange(len(grid))) / max(scale, 1)
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("ia,jb,abd->ijd", weights, weights, grid)


def save(folder: Path, arrays: Arrays) -> str:
    np.savez(folder / "rvm.npz", **arrays)
    return str(folder / "rvm.npz")


def build(weights: str, **settings: object) -> FrozenEncoder:
    return build_encoder(**({"name": "test_vit", "weights": weights, "img_size": 80} | settings))  # type: ignore[arg-type]


# 256 px have RVM's own grid of 16 x 16; 80 px shrink it to 5 x 5 and 288 px stretch it to 18 x 18.
@pytest.mark.parametrize("img_size", [80, 256, 288])
def test_tokens_are_those_of_rvms_arithmetic(tmp_path: Path, img_size: int) -> None:
    arrays = rvm_arrays()
    encoder = build(save(tmp_path, arrays), img_size=img_size)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (1, img_size, img_size, 3), dtype=torch.uint8, generator=generator)
    encoded = encoder(frames)
    wanted = torch.from_numpy(rvm_tokens(arrays, frames[0].numpy() / 255)).float()
    # Single precision over six blocks leaves 3e-6; a GELU by the error function is 6e-4 off, norms with 1e-5 are 1e-3.
    torch.testing.assert_close(encoded.prefix[0], wanted[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded.tokens[0, 0], wanted[1:], rtol=0, atol=1e-5)


def test_positions_are_sines_and_cosines_by_turns() -> None:
    # Rounded once, from double to single precision.
    np.testing.assert_allclose(rvm_positions(256, 64), positions(256, 64), atol=1e-7)


def test_pixels_enter_as_they_are_unless_told_otherwise(tmp_path: Path) -> None:
    weights = save(tmp_path, rvm_arrays())
    assert (build(weights).mean, build(weights).std) == ((0, 0, 0), (1, 1, 1))
    assert build(weights, mean=[0.5] * 3).mean == (0.5, 0.5, 0.5)


def test_the_smallest_released_model_has_the_tensors_of_timms_small_one(tmp_path: Path) -> None:
    """Six heads of 64 in 12 blocks; the larger ones differ in these numbers alone."""
    weights = Path(save(tmp_path, rvm_arrays(width=384, heads=6, layers=12, hidden=1536)))
    vit = skeleton("vit_small_patch16_224", 256)
    state = read_rvm(weights, vit, name="vit_small_patch16_224")
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in vit.state_dict().items()
    }


def test_the_arrays_decide_what_the_weights_are_and_not_the_rest_of_the_file(tmp_path: Path) -> None:
    arrays = rvm_arrays()
    first = build(save(tmp_path, arrays))
    assert weights_identity("test_vit", save(tmp_path, arrays)).startswith("sha256:")
    second = build(save(tmp_path, arrays | {"decoder/LayerNorm_0/scale": np.zeros(3)}))
    third = build(save(tmp_path, arrays | {"cls_token": np.zeros((1, WIDTH), np.float32)}))
    assert first.weights_sha256 == second.weights_sha256 != third.weights_sha256


def test_everything_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    arrays = rvm_arrays()
    del arrays["encoder/layers_3/mlp/dense_in/bias"], arrays["encoder/layers_2/attention/key/bias"]
    arrays["encoder/layers_6/mlp_norm/scale"] = np.zeros(WIDTH, np.float32)
    arrays["encoder/LayerNorm_0/bias"] = np.zeros(7, np.float32)
    with pytest.raises(VidflowError) as caught:
        build(save(tmp_path, arrays))
    for part in (
        "missing blocks.3.mlp.fc1.bias",
        "missing blocks.2.attn.qkv.bias",
        "unexpected blocks.2.attn.query.bias",
        "unexpected blocks.6.norm2.weight",
        "norm.bias is (7,)",
    ):
        assert part in str(caught.value)


def test_a_model_with_other_heads_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    weights = save(tmp_path, rvm_arrays(heads=4))
    with pytest.raises(VidflowError, match=r"'test_vit' has 2 heads; wanted vit_small_patch16_224"):
        build(weights)
    for name in ("vit_small_patch16_dinov3", "vit_small_patch16_18x2_224"):
        with pytest.raises(VidflowError, match=rf"{name}.*wanted vit_small_patch16_224"):
            build(weights, name=name)


def test_other_files_of_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VidflowError, match="does not hold RVM"):
        build(save(tmp_path, {"embedding/kernel": np.zeros(3)}))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(VidflowError, match="cannot be read"):
        build(str(tmp_path / "text.npz"))
    np.savez(tmp_path / "objects.npz", cls_token=np.array([{}], dtype=object))
    with pytest.raises(VidflowError, match="cannot be read"):
        build(str(tmp_path / "objects.npz"))
