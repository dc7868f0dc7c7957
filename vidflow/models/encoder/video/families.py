"""What the families of video transformers are, without torch: geometry, normalisation, sizes, where weights are.

Source: each model's paper and its released configuration; shared conventions of "Video, How Do Your Tokens Merge?"
(Pollard and Wray, 2025) for order, bias and scope.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from vidflow.errors import VidflowError

if TYPE_CHECKING:
    from vidflow.models.reduction.bipartite import GroupScope
    from vidflow.models.reduction.matching import Order

Family = Literal["vivit", "videomae", "timesformer", "motionformer", "vjepa2"]
"""A family of video transformers.

Choices:
    vivit: ViViT, joint attention (Arnab et al., ICCV 2021, model 1).
    videomae: VideoMAE (Tong et al., NeurIPS 2022).
    timesformer: TimeSformer, divided attention (Bertasius et al., ICML 2021).
    motionformer: Motionformer, trajectory attention (Patrick et al., NeurIPS 2021).
    vjepa2: V-JEPA 2 (Assran et al., 2025).
"""
WalkKind = Literal["joint", "divided", "trajectory"]
Fps = float | Literal["uniform"]
"""Frames per second of a model's clips, or `uniform`: its frames are the middles of equal segments of the video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFacts:
    """What the models of a family share.

    Attributes:
        walk: How attention runs over space and time.
        fps: Frames per second that the models were trained on, of videos at 30 frames per second.
        mean: Mean per channel of pixels scaled to `input_range`, unless the checkpoint's own file says otherwise.
        std: Standard deviation per channel, likewise.
        input_range: Range that pixel values 0 to 255 are scaled to.
        order: Published order of unmerged tokens.
        proportional_attention: Whether the published runs weight keys by size.
        scopes: Groups of tokens that can be matched; the first is the default.
        num_prefix: Class tokens of a clip.
        presets: Settings of the library's configuration by the name of a size; the first is the default.
    """

    walk: WalkKind
    fps: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_range: tuple[float, float] = (0.0, 1.0)
    order: "Order"
    proportional_attention: bool = True
    scopes: tuple["GroupScope", ...]
    num_prefix: int
    presets: Mapping[str, Mapping[str, Any]]


NUM_CLASSES = 400
"""Classes of a classifier whose weights do not say: those of Kinetics-400."""
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_JOINT: tuple["GroupScope", ...] = ("clip", "frame", "tube")
_FRAMES: tuple["GroupScope", ...] = ("frame", "tube")


def _vit(width: int, depth: int, heads: int, **others: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    return {"image_size": 224, "intermediate_size": 4 * width, **sizes, **others}


def _vjepa(width: int, depth: int, heads: int, **others: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    clip = {"frames_per_clip": 64, "crop_size": 256, "tubelet_size": 2, "patch_size": 16}
    return {**clip, "mlp_ratio": 4.0, "num_pooler_layers": 3, **sizes, **others}


_TINY = {"num_frames": 8, "intermediate_size": 96}
_VIVIT = {"num_frames": 32, "tubelet_size": (2, 16, 16)}
_TUBELETS = {"num_frames": 16, "tubelet_size": 2, "patch_size": 16}
_FRAMES_ALONE = {"num_frames": 8, "patch_size": 16}
FAMILIES: Mapping[Family, FamilyFacts] = {
    "vivit": FamilyFacts(
        walk="joint",
        fps=15.0,
        # Zero-centred pixels, x / 127.5 - 1, as the original model had in training. The hub's preprocessor file scales
        # to [-1, 1] and then normalises once more.
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        input_range=(-1.0, 1.0),
        order="index",
        scopes=_JOINT,
        num_prefix=1,
        presets={
            "base": _vit(768, 12, 12, **_VIVIT),
            "tiny": _vit(48, 3, 4, image_size=48, **{**_VIVIT, **_TINY}),
        },
    ),
    "videomae": FamilyFacts(
        walk="joint",
        fps=7.5,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        order="similarity",
        proportional_attention=False,
        scopes=_JOINT,
        num_prefix=0,
        presets={
            "base": _vit(768, 12, 12, **_TUBELETS),
            "small": _vit(384, 12, 6, **_TUBELETS),
            "large": _vit(1024, 24, 16, **_TUBELETS),
            "huge": _vit(1280, 32, 16, **_TUBELETS),
            "tiny": _vit(48, 3, 4, image_size=48, **{**_TUBELETS, **_TINY}),
        },
    ),
    "timesformer": FamilyFacts(
        walk="divided",
        fps=30 / 32,
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
        order="similarity",
        scopes=_FRAMES,
        num_prefix=1,
        presets={
            "base": _vit(768, 12, 12, **_FRAMES_ALONE),
            "hr": _vit(768, 12, 12, image_size=448, **{**_FRAMES_ALONE, "num_frames": 16}),
            "large": _vit(768, 12, 12, **{**_FRAMES_ALONE, "num_frames": 96}),
            "tiny": _vit(48, 3, 4, image_size=64, **{**_FRAMES_ALONE, **_TINY}),
        },
    ),
    "motionformer": FamilyFacts(
        walk="trajectory",
        fps=7.5,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        order="similarity",
        scopes=(*_FRAMES, "stride"),
        num_prefix=1,
        presets={
            "base": _vit(768, 12, 12, **_TUBELETS),
            "hr": _vit(768, 12, 12, image_size=336, **_TUBELETS),
            "large": _vit(768, 12, 12, **{**_TUBELETS, "num_frames": 32}),
            "tiny": _vit(48, 3, 4, image_size=64, **{**_TUBELETS, **_TINY}),
        },
    ),
    "vjepa2": FamilyFacts(
        walk="joint",
        fps=4.0,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        order="index",
        scopes=_JOINT,
        num_prefix=0,
        presets={
            "large": _vjepa(1024, 24, 16),
            "huge": _vjepa(1280, 32, 16),
            "giant": _vjepa(1408, 40, 22, mlp_ratio=48 / 11, crop_size=384),
            "tiny": _vjepa(
                48, 3, 4, mlp_ratio=2.0, frames_per_clip=8, crop_size=48, num_pooler_layers=1,
                pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1,
            ),
        },
    ),
}  # fmt: skip


def facts_of(family: str) -> FamilyFacts:
    """Return the facts of a family.

    Raises:
        VidflowError: There is no such family.
    """
    for name, facts in FAMILIES.items():
        if name == family:
            return facts
    raise VidflowError(f"encoder.family is {family!r}; wanted one of {', '.join(get_args(Family))}")


def preset_of(family: str, name: str | None) -> Mapping[str, Any]:
    """Return the configuration of a size by name; None is the family's usual one.

    Raises:
        VidflowError: The family has no such size.
    """
    presets = facts_of(family).presets
    if name is None:
        return next(iter(presets.values()))
    if name not in presets:
        raise VidflowError(f"encoder.size is {name!r}; {family} has the sizes {', '.join(presets)}")
    return presets[name]


__all__ = ["FAMILIES", "NUM_CLASSES", "Family", "FamilyFacts", "Fps", "WalkKind", "facts_of", "preset_of"]
