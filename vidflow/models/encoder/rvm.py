"""The image encoder of RVM's released checkpoints as a vision transformer of timm.

Axes: N patch tokens, D width.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.encoder.architecture import shape_of, skeleton
from vidflow.models.encoder.vit import TimmVit
from vidflow.models.flax_arrays import from_flax
from vidflow.npz import read_npz

# Flax's defaults: GELU in its tanh approximation, and norms with eps 1e-6.
RVM_OPTIONS = {"act_layer": "gelu_tanh", "norm_layer": "layernorm"}
# Pixels in [0, 1] are not normalised.
RVM_MEAN, RVM_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

_GRID = 16
_WORDS = {
    "layers_": "blocks",
    "attention": "attn",
    "attention_norm": "norm1",
    "mlp_norm": "norm2",
    "dense_in": "fc1",
    "dense_out": "fc2",
    "out": "proj",
    "LayerNorm_0": "norm",
    "Conv_0": "proj",
    "patch_embedding": "patch_embed",
}
_WANTED = "wanted vit_small_patch16_224, vit_base_patch16_224 or vit_large_patch16_224, whichever has RVM's size"


def check_rvm_name(name: str) -> None:
    """Check that a model has the architecture of RVM's encoder.

    Raises:
        VidflowError: It has another architecture.
    """
    vit = skeleton(name)
    if not isinstance(vit, VisionTransformer) or not isinstance(vit.blocks[0], Block):
        raise VidflowError(f"encoder.name is {name!r}, but encoder.weights is an .npz of RVM; {_WANTED}")


def read_rvm(path: Path, vit: TimmVit, *, name: str) -> dict[str, Tensor]:
    """Return the weights of the image encoder in an `.npz` of RVM under timm's names; other arrays are not read.

    RVM's image encoder is a plain pre-norm transformer. Its class token has no position embedding.

    Source: google-deepmind/representations4d, `colabs/rvm_inference_demo.ipynb`: VideoSiamMAE, whose attributes
    `tokenizer` and `encoder` and whose parameter `cls_token` name the arrays.

    Args:
        path: The file.
        vit: The model that the weights are for.
        name: Its name in timm.

    Raises:
        VidflowError: The file is not of RVM, or the model has another number of heads.
    """
    try:
        arrays = read_npz(path, lambda key: key.startswith(("encoder/", "tokenizer/")) or key == "cls_token")
    except (OSError, ValueError) as error:
        raise VidflowError(f"{path} cannot be read as an .npz of arrays: {error}") from error
    query = arrays.get("encoder/layers_0/attention/query/kernel")
    if query is None or "cls_token" not in arrays:
        raise VidflowError(f"{path} does not hold RVM's image encoder, the only .npz that can be loaded")
    num_heads = shape_of(vit).num_heads
    if query.ndim != 3 or query.shape[1] != num_heads:
        raise VidflowError(
            f"{path} has queries of shape {query.shape} (width, heads, width of a head), but encoder {name!r} has "
            f"{num_heads} heads; {_WANTED}"
        )
    token = torch.tensor(arrays.pop("cls_token"), dtype=torch.float32)
    modules = {key.partition("/")[2]: array for key, array in arrays.items()}
    state = from_flax(modules, words=_WORDS, fused="{}.qkv.{}")
    positions = torch.from_numpy(rvm_positions(_GRID**2, query.shape[0]))
    state["pos_embed"] = torch.cat([torch.zeros(1, query.shape[0]), positions])[None]
    state["cls_token"] = token[None]
    return state


def rvm_positions(num_tokens: int, embed_dim: int) -> Float32[np.ndarray, "N D"]:
    """Return the sinusoidal embedding of a patch's index in raster order; sines and cosines alternate.

    Unlike MAE's, it does not encode row and column separately.
    """
    places, waves = np.arange(num_tokens)[:, None], np.arange(embed_dim) // 2 * 2 / embed_dim
    angles = places / 10_000**waves
    return np.where(np.arange(embed_dim) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)
