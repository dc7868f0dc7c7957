"""Adapters and heads that read other frames against the outputs and gradients of the published modules."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from timm.layers import LayerNorm
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vidflow.config.schema import Adaptation, AdapterPlace
from vidflow.models.encoder.adapted import AdaptedEncoder
from vidflow.models.encoder.adapted.adapter import LinearAdapter
from vidflow.models.encoder.adapted.merge import fold_adapters, fold_block
from vidflow.models.encoder.clip_blocks import HeadOffsets, run_spelled_block
from vidflow.models.encoder.frozen import FrozenEncoder

NAMES = {
    "class_embedding": "cls_token", "positional_embedding": "pos_embed", "conv1": "patch_embed.proj",
    "ln_pre": "norm_pre", "ln_post": "norm", "transformer.resblocks.": "blocks.", "ln_1": "norm1", "ln_2": "norm2",
    "in_proj_": "qkv.", "out_proj": "proj", "c_fc": "fc1", "c_proj": "fc2",
}  # fmt: skip
PLACES: dict[str, AdapterPlace] = {
    "T_Adapter_in": "attention_in", "S_Adapter": "attention_out", "MLP_Adapter": "mlp_in", "MLP_Adapter_out": "mlp_out",
}  # fmt: skip
PARTS = {"D_fc1": "down", "D_fc2": "up"}
EXACT = {"atol": 1e-5, "rtol": 1e-5}  # the published modules ran in float32


def read(shared_dir: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(shared_dir / "fixtures" / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def cases_of(name: str, *, whole_heads: bool = True) -> Any:
    """Give a test each case that the file holds; where there is no file, one case that is skipped."""

    def given(shared_dir: Path) -> Any:
        tensors, metadata = read(shared_dir, name)
        for case in json.loads(metadata["cases"]):
            if case.get("whole_heads", whole_heads):
                prefix = f"{case['case']}."
                yield case, {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}

    return given


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def rename(name: str) -> str:
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return name


def tiny_clip(width: int, heads: int, *, depth: int = 1, image_size: int = 8, patch_size: int = 8) -> VisionTransformer:
    return VisionTransformer(
        img_size=image_size, patch_size=patch_size, embed_dim=width, depth=depth, num_heads=heads, num_classes=0,
        global_pool="", pre_norm=True, act_layer=QuickGELU, norm_layer=partial(LayerNorm, eps=1e-5),
    ).eval().requires_grad_(False)  # fmt: skip


def load_adapters(adapters: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a published block's adapters, which may lack the last one."""
    state = {}
    for key, value in weights.items():
        place, part, kind = key.split(".")
        state[f"{PLACES[place]}.{PARTS[part]}.{kind}"] = value
    adapters.load_state_dict(state)


def test_heads_that_read_other_frames_give_the_published_outputs(shared_dir: Path) -> None:
    for case, tensors in cases_of("zeroi2v_stdha")(shared_dir):
        tokens, heads, frames = tensors["tokens"], case["num_heads"], case["num_frames"]
        vit = tiny_clip(tokens.shape[-1], heads)
        block: Any = vit.blocks[0]
        names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
        names |= {"out_proj_weight": "proj.weight", "out_proj_bias": "proj.bias"}
        block.attn.load_state_dict({new: tensors[old] for old, new in names.items()})
        # The attention alone: no norm before it, nothing behind it, and without the residual stream.
        block.norm1, block.mlp = nn.Identity(), nn.Identity()
        block.norm2.weight.data.zero_(), block.norm2.bias.data.zero_()
        offsets = HeadOffsets(tuple(case["head_offsets"]))
        for eager in (False, True):
            output = run_spelled_block(vit, 0, tokens.flatten(0, 1), None, read=offsets.reader(frames), eager=eager)
            attended = output.view_as(tokens) - tokens
            torch.testing.assert_close(attended, tensors["output"], **EXACT)


def test_an_adapter_gives_the_published_output_gradients_and_merged_maps(shared_dir: Path) -> None:
    for case, tensors in cases_of("zeroi2v_adapter")(shared_dir):
        adapter = LinearAdapter(case["width"], case["rank"], scale=case["scale"], dropout=0.1).eval()
        for part in ("down", "up"):
            for kind in ("weight", "bias"):
                getattr(getattr(adapter, part), kind).data = tensors[f"{part}_{kind}"]
        output = adapter(tensors["input"])
        torch.testing.assert_close(output, tensors["output"], **EXACT)
        (output * tensors["cotangent"]).sum().backward()
        for name, parameter in adapter.named_parameters():
            torch.testing.assert_close(parameter.grad, tensors[f"grad_{name.replace('.', '_')}"], atol=1e-4, rtol=1e-4)
        matrix, vector = adapter.matrix_and_vector()
        torch.testing.assert_close(matrix, tensors["matrix"].double(), atol=1e-12, rtol=0)
        torch.testing.assert_close(vector, tensors["vector"].double(), atol=1e-12, rtol=0)
        # The linear map behind the adapter, and the one before it.
        block: Any = tiny_clip(case["width"], 1).blocks[0]
        names = {"next": "fc1", "previous": "fc2"}
        for name, linear in names.items():
            weight = tensors[f"{name}_weight"]
            made = nn.Linear(*reversed(weight.shape)).double()
            made.load_state_dict({"weight": weight, "bias": tensors[f"{name}_bias"]})
            setattr(block.mlp, linear, made)
        fold_block(block, {"mlp_in": adapter, "mlp_out": adapter})
        for name, linear in names.items():
            for kind, found in getattr(block.mlp, linear).named_parameters():
                torch.testing.assert_close(found.data, tensors[f"{name}_{kind}_merged"], atol=1e-12, rtol=0)


def test_a_block_with_adapters_gives_the_published_output_and_gradients(shared_dir: Path) -> None:
    for case, tensors in cases_of("zeroi2v_block")(shared_dir):
        tokens, weights = tensors["tokens"], under(tensors, "w.")
        vit = tiny_clip(tokens.shape[-1], case["num_heads"])
        vit.blocks[0].load_state_dict({rename(key): v for key, v in weights.items() if "Adapter" not in key})
        trained = {key: v for key, v in weights.items() if "Adapter" in key}
        rank = trained["S_Adapter.D_fc1.bias"].shape[0]
        places = list(PLACES.values())[: case["adapters"]]
        made = {p: LinearAdapter(tokens.shape[-1], rank, scale=case["adapter_scale"], dropout=0.0) for p in places}
        adapters = nn.ModuleDict(made)
        load_adapters(adapters, trained)
        output = run_spelled_block(
            vit, 0, tokens.flatten(0, 1), None,
            read=HeadOffsets(tuple(case["head_offsets"])).reader(case["num_frames"]), adapters=made,
        ).view_as(tokens)  # fmt: skip
        torch.testing.assert_close(output, tensors["output"], **EXACT)
        (output * tensors["cotangent"]).sum().backward()
        for key, wanted in under(tensors, "grad.").items():
            place, part, kind = key.split(".")
            found = getattr(getattr(made[PLACES[place]], PARTS[part]), kind).grad
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def freeze(vit: VisionTransformer, dtype: torch.dtype) -> FrozenEncoder:
    return FrozenEncoder(
        vit=vit, name="tiny", weights="random:0", img_size=vit.patch_embed.img_size[0], depths=None,
        normalize_depths=True, device=torch.device("cpu"), dtype=dtype, mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip


def published_encoder(
    tensors: dict[str, Tensor], model: dict[str, Any], dtype: torch.dtype = torch.float32
) -> AdaptedEncoder:
    """Build a tiny model with the published weights."""
    vit = tiny_clip(
        model["width"], model["num_heads"],
        depth=model["layers"], image_size=model["image_size"], patch_size=model["patch_size"],
    )  # fmt: skip
    weights = under(tensors, "w.")
    frozen = {rename(key): v for key, v in weights.items() if "Adapter" not in key and key != "temporal_embedding"}
    frozen["cls_token"], frozen["pos_embed"] = frozen["cls_token"][None, None], frozen["pos_embed"][None]
    vit.load_state_dict(frozen)
    adaptation = Adaptation(scale=model["adapter_scale"], offsets=model["head_offsets"], dropout=0.0)
    adapted = AdaptedEncoder(freeze(vit, dtype), adaptation, num_frames=model["num_frames"])
    for index in range(model["layers"]):
        block = under(weights, f"transformer.resblocks.{index}.")
        load_adapters(adapted.adapters[str(index)], {key: v for key, v in block.items() if "Adapter" in key})
    assert adapted.temporal_embedding is not None
    adapted.temporal_embedding.data = weights["temporal_embedding"][0]
    return adapted.to(dtype).eval()


def merged_encoder(encoder: AdaptedEncoder) -> AdaptedEncoder:
    """Return the encoder with its adapters in the weights; what is left are the offsets and the embedding."""
    vit, parts = fold_adapters(encoder)
    left = Adaptation(places=[], offsets=list(parts.offsets.by_head))
    merged = AdaptedEncoder(freeze(vit, encoder.frozen.dtype), left, num_frames=encoder.trained_frames)
    assert merged.temporal_embedding is not None
    assert parts.embedding is not None
    merged.temporal_embedding.data = parts.embedding
    return merged.to(encoder.frozen.dtype).eval()


def class_tokens(encoder: AdaptedEncoder, video: Tensor) -> Tensor:
    prefix = encoder.encode_images(video.transpose(1, 2)).prefix
    assert prefix is not None
    return prefix[:, :, 0].detach()


@pytest.mark.parametrize("name", ["zeroi2v_vit", "zeroi2v_vit_long"])
def test_a_whole_encoder_gives_the_published_class_tokens(shared_dir: Path, name: str) -> None:
    tensors, metadata = read(shared_dir, name)
    model = json.loads(metadata["model"])
    encoder = published_encoder(tensors, model)
    torch.testing.assert_close(class_tokens(encoder, tensors["video"]), tensors["output"], **EXACT)
    encoder.eager = True
    torch.testing.assert_close(class_tokens(encoder, tensors["video"]), tensors["output"], **EXACT)
    fresh = AdaptedEncoder(encoder.frozen, encoder.adaptation, num_frames=model["num_frames"]).eval()
    torch.testing.assert_close(class_tokens(fresh, tensors["video"]), tensors["initial_output"], **EXACT)
    plain = AdaptedEncoder(encoder.frozen, Adaptation(places=[]), num_frames=model["num_frames"]).eval()
    torch.testing.assert_close(class_tokens(plain, tensors["video"]), tensors["image_output"], **EXACT)


@pytest.mark.parametrize("name", ["zeroi2v_vit", "zeroi2v_vit_long"])
def test_a_merged_encoder_has_the_published_weights_and_output(shared_dir: Path, name: str) -> None:
    tensors, metadata = read(shared_dir, name)
    model = json.loads(metadata["model"])
    encoder = published_encoder(tensors, model)
    merged = merged_encoder(encoder)
    found, published = merged.frozen.vit.state_dict(), under(tensors, "merged.")
    assert len(published) == 8 * model["layers"]
    for key, wanted in published.items():
        torch.testing.assert_close(found[rename(key)], wanted, **EXACT)
    assert found.keys() == encoder.frozen.vit.state_dict().keys()  # the stock model's, without a parameter more
    torch.testing.assert_close(class_tokens(merged, tensors["video"]), tensors["merged_output"], **EXACT)
    torch.testing.assert_close(class_tokens(merged, tensors["video"]), class_tokens(encoder, tensors["video"]), **EXACT)
    exact, video = published_encoder(tensors, model, torch.float64), tensors["video"].double()
    difference = class_tokens(merged_encoder(exact), video) - class_tokens(exact, video)
    assert float(difference.abs().max()) < 1e-12
