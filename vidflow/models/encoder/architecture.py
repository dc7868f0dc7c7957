"""Which timm models can be an encoder, their shapes, and where their weights are published."""

import difflib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import timm
import torch

from vidflow.errors import VidflowError
from vidflow.models.encoder.vit import TimmVit, check_blocks
from vidflow.models.reduction.build import Reducer
from vidflow.models.reduction.controls import InputLowerResolution
from vidflow.models.reduction.macs import VitShape

# timm's modules with plain pre-norm blocks, which `vit.walk_blocks` can run.
_VIT_MODULES = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")


def list_encoders(part: str) -> list[tuple[str, bool]]:
    """Return the names of timm's vision transformers that contain `part`, each with whether `weights: hub` has it.

    An architecture with published weights is listed once per set of weights, as `architecture.tag`.
    """
    vits = [model for model in timm.list_models() if timm.model_entrypoint(model).__module__ in _VIT_MODULES]
    names = [name for model in vits for name in timm.list_pretrained(f"{model}.*") or [model]]
    return [(name, _on_hub(name) is not None) for name in names if part.casefold() in name.casefold()]


def check_name(name: str) -> None:
    """Check that timm has the model and its tag, and that it is a vision transformer.

    Raises:
        VidflowError: A check fails; the message has the nearest valid names.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        vits = [model for model in timm.list_models() if timm.model_entrypoint(model).__module__ in _VIT_MODULES]
        nearest = difflib.get_close_matches(architecture, vits, n=5, cutoff=0.5)
        raise VidflowError(f"encoder.name is {name!r}, unknown to timm {version('timm')}; nearest: {_listed(nearest)}")
    module = timm.model_entrypoint(architecture).__module__
    if module not in _VIT_MODULES:
        raise VidflowError(
            f"encoder.name is {name!r}, which is not a plain vision transformer (timm has it in {module}); wanted a "
            f"model of {', '.join(_VIT_MODULES)}, such as vit_small_patch14_dinov2 or vit_small_patch16_dinov3"
        )
    if tag and not timm.models.is_model_pretrained(name):
        tagged = [model.partition(".")[2] for model in timm.list_pretrained(f"{architecture}.*")]
        raise VidflowError(
            f"encoder.name is {name!r}, but {architecture!r} has no tag {tag!r}; it has {_listed(tagged)}"
        )


def skeleton(name: str, img_size: int | None = None) -> TimmVit:
    """Return an encoder without weights, to read its widths and costs from.

    Args:
        name: The timm model.
        img_size: Side of the square frames in pixels; None is the size that the model was published with.

    Raises:
        VidflowError: No such vision transformer, or a size that is no multiple of its patch size.
    """
    check_name(name)
    with torch.device("meta"):
        return create_vit(name, img_size, None)


def shape_of(vit: TimmVit) -> VitShape:
    """Read from a model the numbers that its cost depends on and that reducers must fit."""
    block: Any = vit.blocks[0]
    projection: Any = vit.patch_embed.proj
    rows, columns = vit.patch_embed.grid_size
    return VitShape(
        depth=len(vit.blocks),
        embed_dim=int(vit.embed_dim),
        num_heads=int(block.attn.num_heads),
        attention_weights=sum(weight.numel() for weight in block.attn.parameters() if weight.ndim == 2),
        mlp_weights=sum(weight.numel() for weight in block.mlp.parameters() if weight.ndim == 2),
        grid=(int(rows), int(columns)),
        num_prefix=int(vit.num_prefix_tokens),
        patch_values=projection.weight[0].numel(),
    )


def patch_size_of(vit: TimmVit) -> int:
    """Return the side of a patch in pixels."""
    return int(vit.patch_embed.patch_size[0])


def create_vit(name: str, img_size: int | None, reduction: Reducer | None, **options: Any) -> TimmVit:
    """Create the model with initial weights, at the size that its frames will have.

    Args:
        name: The timm model.
        img_size: Side of the square frames in pixels; None is the size that the model was published with.
        reduction: The reducer that acts before or inside the model, if any.
        options: Further arguments of timm's `create_model`.

    Raises:
        VidflowError: The model is no vision transformer, or model, size and reducer do not fit together.
    """
    vit = timm.create_model(name, pretrained=False, num_classes=0, img_size=img_size, dynamic_img_size=False, **options)
    if not isinstance(vit, TimmVit):
        raise VidflowError(f"encoder.name is {name!r}, a {type(vit).__name__}; wanted a plain vision transformer")
    vit.reset_classifier(0, "")
    patch_size = patch_size_of(vit)
    side = int(vit.patch_embed.img_size[0]) if img_size is None else img_size
    if img_size is not None:  # some models are published with a size that is no multiple of the patch size
        check_img_size(img_size, patch_size=patch_size, name=name)
    if reduction is None:
        return vit
    if isinstance(reduction, InputLowerResolution):
        small_side = reduction.side(side // patch_size) * patch_size
        vit.set_input_size((small_side, small_side))
        return vit
    if reduction.place == "post":
        raise ValueError(
            f"{reduction} reduces cached tokens; build the encoder without it and call its `assign` on them"
        )
    check_blocks(vit)
    reduction.check(shape_of(vit), num_frames=1)  # reducers before or in the encoder ignore num_frames
    return vit


def check_img_size(img_size: int, *, patch_size: int, name: str) -> None:
    """Check that frames divide into whole patches.

    Raises:
        VidflowError: They do not; the message has the nearest valid sizes.
    """
    if img_size < patch_size or img_size % patch_size:
        below = img_size // patch_size * patch_size
        nearest = [size for size in (below, below + patch_size) if size > 0]
        raise VidflowError(
            f"encoder.img_size is {img_size}, but {name!r} has patches of {patch_size} pixels; "
            f"wanted a multiple of {patch_size}, the nearest being {' or '.join(map(str, nearest))}"
        )


def resolve_depths(depths: Sequence[int] | None, *, num_blocks: int) -> list[int]:
    """Turn depths into ascending block indices; negative depths count from the end, None is the last block.

    Raises:
        VidflowError: A depth is out of range or named twice, or the list is empty.
    """
    if depths is None:
        return [num_blocks - 1]
    resolved = sorted(depth + num_blocks if depth < 0 else depth for depth in depths)
    if not resolved or resolved[0] < 0 or resolved[-1] >= num_blocks or len(set(resolved)) < len(resolved):
        raise VidflowError(
            f"got the depths {list(depths)}; wanted one or more different blocks between "
            f"0 and {num_blocks - 1} (or between -{num_blocks} and -1, counted from the end)"
        )
    return resolved


def hub_location(name: str) -> tuple[str, str | None]:
    """Return the Hugging Face repository of a model's published weights, and the file's name if it is unusual.

    Raises:
        VidflowError: timm does not have the model, or has no weights for it on the hub.
    """
    check_name(name)
    location = _on_hub(name)
    if location is None:
        tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise VidflowError(
            f"encoder.weights is 'hub', but timm has no plain checkpoint of {name!r} on the Hugging Face hub; it has "
            f"{_listed(tagged)} for that architecture. Name one, or give a local file"
        )
    return location


def _on_hub(name: str) -> tuple[str, str | None] | None:
    """Return where the hub has a plain checkpoint of a model, or None if it has none."""
    published = timm.models.get_pretrained_cfg(name)
    if published is None or not published.hf_hub_id or str(published.custom_load) == "hf":
        return None
    return published.hf_hub_id, published.hf_hub_filename


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
