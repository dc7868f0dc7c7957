"""In-block reduction against a tiny VideoMAE that was run with the published code."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from vidflow.errors import VidflowError
from vidflow.models.encoder.reduced_vit import Tokens, walk_reduced
from vidflow.models.encoder.rvm import rvm_positions
from vidflow.models.reduction.bipartite import BlockBipartite
from vidflow.models.reduction.build import build_reducer

WIDTH, PATCHES = 48, 36
# VideoMAE's modules, and what timm's blocks call them.
NAMES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def read_case(shared_dir: Path, case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(shared_dir / "fixtures/video_videomae.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["about"])["cases"].get(case, {})


def blocks_of_videomae(tensors: dict[str, Tensor]) -> VisionTransformer:
    """Build the blocks in timm: a model without a class token, whose patches of 3 x 4 x 4 numbers are its tokens."""
    vit = VisionTransformer(
        img_size=24,
        patch_size=4,
        embed_dim=WIDTH,
        depth=3,
        num_heads=4,
        mlp_ratio=2,
        num_classes=0,
        class_token=False,
        global_pool="",
        norm_layer=partial(nn.LayerNorm, eps=1e-12),
    ).eval()
    state = {
        "pos_embed": torch.from_numpy(rvm_positions(PATCHES, WIDTH))[None],
        "patch_embed.proj.weight": torch.eye(WIDTH).view(WIDTH, 3, 4, 4),
        "patch_embed.proj.bias": torch.zeros(WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }
    for block in range(3):
        prefix = f"w.videomae.encoder.layer.{block}."
        for theirs, ours in NAMES.items():
            for kind in ("weight", "bias"):
                state[f"blocks.{block}.{ours}.{kind}"] = tensors[f"{prefix}{theirs}.{kind}"]
        attention = f"{prefix}attention.attention"
        weights = [tensors[f"{attention}.{part}.weight"] for part in ("query", "key", "value")]
        query, value = (tensors[f"{attention}.{part}.bias"] for part in ("query", "value"))
        state[f"blocks.{block}.attn.qkv.weight"] = torch.cat(weights)
        state[f"blocks.{block}.attn.qkv.bias"] = torch.cat([query, torch.zeros(WIDTH), value])
    vit.load_state_dict(state)
    return vit.requires_grad_(False)


def as_images(tensors: dict[str, Tensor]) -> Tensor:
    """Return images of 6 x 6 patches that hold the tokens of the clips."""
    embeddings = "w.videomae.embeddings.patch_embeddings.projection."
    tokens = functional.conv3d(
        tensors["pixel_values"].transpose(1, 2),
        tensors[f"{embeddings}weight"],
        tensors[f"{embeddings}bias"],
        stride=(2, 16, 16),
    )
    return functional.fold(tokens.flatten(2), (24, 24), kernel_size=4, stride=4)


def walk(tensors: dict[str, Tensor], reducer: BlockBipartite | None) -> Tokens:
    (tap,) = walk_reduced(blocks_of_videomae(tensors), as_images(tensors), depths=[2], normalize=False, reducer=reducer)
    return tap


@pytest.mark.parametrize(
    "case",
    [
        "plain", "merge", "merge_index_order", "merge_other_bias", "merge_decreasing", "merge_increasing",
        "merge_capped", "merge_concat", "drop", "hybrid",
    ],
)  # fmt: skip
def test_a_model_without_a_class_token_is_reduced_as_published(shared_dir: Path, case: str) -> None:
    tensors, about = read_case(shared_dir, case)
    reducer = None
    if case != "plain":
        settings = {"order": "index"} if about.get("keep_order") == "index" else {}
        if "threshold" in about:
            settings["threshold"] = about["threshold"]
        made = build_reducer(
            "tome" if about["mode"] == "merge" else about["mode"],
            num_merged=about["r"],
            head_pooling=about.get("heads", "mean"),
            proportional_attention=about["prop_attn"],
            **settings,
        )
        assert isinstance(made, BlockBipartite)
        reducer = made
    tap = walk(tensors, reducer)
    # The tolerance that came with the file; no matching in it hangs on a rounding.
    torch.testing.assert_close(tap.tokens, tensors[f"{case}.last_hidden_state"], rtol=0, atol=5e-5)
    if reducer is not None:
        wanted = tensors[f"{case}.assignment"]
        # Where a source replaces a destination, the file has no row for the latter; here it is that of the source.
        ours = torch.where(wanted < 0, wanted, tap.assignment) if case == "hybrid" else tap.assignment
        assert torch.equal(ours.int(), wanted)
        assert torch.equal(tap.sizes, tensors[f"{case}.sizes"])


def test_the_order_changes_nothing_in_the_first_block_that_merges_but_all_that_follow(shared_dir: Path) -> None:
    tensors, _ = read_case(shared_dir, "merge")
    for num_merged, is_same in (((6,), True), ((6, 6), False)):
        first, second = (
            walk(tensors, BlockBipartite(num_merged=num_merged, order=order)).tokens.sort(dim=1).values
            for order in ("index", "similarity")
        )
        assert torch.allclose(first, second, atol=1e-5) == is_same


def test_an_order_that_is_none_is_refused() -> None:
    with pytest.raises(VidflowError, match="'tome' has order 'size'; wanted one of index, similarity or null"):
        build_reducer("tome", num_merged=4, order="size")
    with pytest.raises(VidflowError, match="'tome' has no setting order"):
        build_reducer("tome", place="post", keep=0.5, order="similarity")
