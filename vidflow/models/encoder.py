"""Build a frozen image encoder from any timm vision transformer and run it on decoded frames.

Axes: B frames, H and W pixels, K tapped depths, N patch tokens, P prefix tokens (class token and registers), D width.
"""

import copy
import difflib
import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, assert_never

import timm
import torch
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import eva, vision_transformer
from timm.models.eva import Eva
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.encoded import EncodedFrames, pack_taps
from vidflow.models.pruned_frames import encode_pruned, shrink
from vidflow.models.reduced_vit import walk_reduced
from vidflow.models.reduction.build import InputReducer, Reducer
from vidflow.models.reduction.controls import InputLowerResolution, covering_patches
from vidflow.models.reduction.in_block import BlockReducer
from vidflow.models.reduction.seeds import content_seeds
from vidflow.models.vit import TimmVit, check_blocks, walk_blocks
from vidflow.models.weights import hub_file, random_seed, weights_kind

EncoderDtype = Literal["auto", "float32", "bfloat16", "float16"]

# The modules of timm whose plain pre-norm sequences the block walk understands.
_VIT_MODULES = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")
# A frozen encoder has neither a classifier nor a pooling head, so a checkpoint's are left unread.
_HEAD_PREFIXES = ("head.", "head_dist.", "attn_pool.")


class FrozenEncoder:
    """A timm vision transformer that never trains: uint8 frames in, patch tokens of the tapped depths out.

    Attributes:
        vit: The timm model, in evaluation mode, on its device and in its dtype.
        embed_dim: Width D of a token.
        patch_size: Side of a square patch in pixels.
        num_prefix_tokens: Class token and registers, P.
        depth: Number of blocks of the model.
        grid: Patches per column and per row.
        depths: Tapped blocks, from 0, ascending.
        weights_sha256: Digest of the float32 weights as loaded, before any cast.
        mean: Mean per channel of frames scaled to `input_range`.
        std: Standard deviation per channel of the same.
        input_range: Range that pixel values 0 to 255 are scaled to before mean and standard deviation.
    """

    input_range = (0.0, 1.0)

    def __init__(
        self,
        *,
        vit: TimmVit,
        name: str,
        weights: str,
        img_size: int,
        depths: Sequence[int] | None,
        normalize_depths: bool,
        device: torch.device,
        dtype: torch.dtype,
        mean: Sequence[float],
        std: Sequence[float],
        reduction: Reducer | None = None,
    ) -> None:
        """Take a built and loaded model; use `build_encoder` to get one."""
        self.name, self.weights, self.img_size = name, weights, img_size
        self.normalize_depths = normalize_depths
        self.embed_dim = int(vit.embed_dim)
        self.patch_size = int(vit.patch_embed.patch_size[0])
        self.num_prefix_tokens = int(vit.num_prefix_tokens)
        self.depth = len(vit.blocks)
        self.grid = (img_size // self.patch_size, img_size // self.patch_size)
        self.reduction = reduction
        self.depths = resolve_depths(depths, num_blocks=self.depth)
        self.mean, self.std = tuple(mean), tuple(std)
        self.weights_sha256 = state_sha256(vit.state_dict())
        self.device, self.dtype = device, dtype
        self.vit = _cast(vit, device=device, dtype=dtype).eval().requires_grad_(False)
        # Pixels are 0..255 here: fold the division by 255 into mean and standard deviation.
        self._mean = torch.tensor(self.mean, device=device) * 255
        self._std = torch.tensor(self.std, device=device) * 255

    @torch.inference_mode()
    def __call__(self, frames: UInt8[Tensor, "B H W 3"], *, num_frames: int = 1) -> EncodedFrames:
        """Encode frames that already have the encoder's size.

        Args:
            frames: RGB frames; clips, if they are several, follow one another.
            num_frames: Frames of a clip. Matters only to reducers that compare frames before the encoder.

        Raises:
            ValueError: The frames are not uint8 of the size the encoder was built for, or not whole clips.
        """
        wanted = (self.img_size, self.img_size, 3)
        if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != wanted:
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}, wanted uint8 (B, {', '.join(map(str, wanted))})"
            )
        if frames.shape[0] % num_frames:
            raise ValueError(f"{frames.shape[0]} frames are no whole number of clips of {num_frames} frames")
        frames = frames.to(self.device, non_blocking=True)
        reduction = self.reduction
        if reduction is None:
            taps = walk_blocks(self.vit, self.images(frames), depths=self.depths, normalize=self.normalize_depths)
            tokens = torch.stack([tap[:, self.num_prefix_tokens :] for tap in taps], dim=1)
            return EncodedFrames(tokens=tokens, prefix=taps[-1][:, : self.num_prefix_tokens])
        if isinstance(reduction, InputLowerResolution):
            return self._encode_small(frames)
        if reduction.stage == "input":
            return self._encode_pruned(frames, reduction, num_frames)
        assert reduction.stage == "block", reduction.stage
        return self._encode_reduced(frames, reduction)

    def images(self, frames: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
        """Normalise in float32, then cast to the encoder's precision."""
        images = (frames.float() - self._mean) / self._std
        return images.permute(0, 3, 1, 2).to(self.dtype)

    def _encode_reduced(self, frames: UInt8[Tensor, "B H W 3"], reducer: BlockReducer) -> EncodedFrames:
        seeds = content_seeds(frames) if reducer.needs_seeds else None
        images = self.images(frames)
        taps = walk_reduced(
            self.vit, images, depths=self.depths, normalize=self.normalize_depths, reducer=reducer, seeds=seeds
        )
        return pack_taps(taps, num_prefix=self.num_prefix_tokens)

    def _encode_pruned(self, frames: UInt8[Tensor, "B H W 3"], reducer: InputReducer, num_frames: int) -> EncodedFrames:
        clips = frames.view(-1, num_frames, *frames.shape[1:])
        kept = reducer.kept(clips, patch_size=self.patch_size).flatten(0, 1)

        def encode(index: Int[Tensor, " b"], some: Bool[Tensor, "b N"] | None) -> EncodedFrames:
            images = self.images(frames[index])
            taps = walk_reduced(self.vit, images, depths=self.depths, normalize=self.normalize_depths, kept=some)
            return pack_taps(taps, num_prefix=self.num_prefix_tokens)

        return encode_pruned(encode, kept, num_frames=num_frames)

    def _encode_small(self, frames: UInt8[Tensor, "B H W 3"]) -> EncodedFrames:
        """Shrink the frames; every patch belongs to the larger patch that covers its centre."""
        small_side = int(self.vit.patch_embed.grid_size[0])
        images = shrink(self.images(frames).float(), small_side * self.patch_size).to(self.dtype)
        taps = walk_blocks(self.vit, images, depths=self.depths, normalize=self.normalize_depths)
        tokens = torch.stack([tap[:, self.num_prefix_tokens :] for tap in taps], dim=1)
        patches = covering_patches(self.grid[0], small_side, self.device)
        sizes = torch.bincount(patches, minlength=small_side**2).float()
        batch, num_depths, num_tokens = tokens.shape[:3]
        return EncodedFrames(
            tokens=tokens,
            prefix=taps[-1][:, : self.num_prefix_tokens],
            sizes=sizes.expand(batch, num_depths, -1),
            assignment=patches.expand(batch, num_depths, -1),
            counts=torch.full((batch, num_depths), num_tokens, device=self.device),
        )

    def describe(self) -> dict[str, Any]:
        """Return everything that decides what the encoder computes, as JSON-ready values."""
        return {
            "name": self.name,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "img_size": self.img_size,
            "patch_size": self.patch_size,
            "grid": list(self.grid),
            "embed_dim": self.embed_dim,
            "num_prefix_tokens": self.num_prefix_tokens,
            "depth": self.depth,
            "depths": self.depths,
            "normalize_depths": self.normalize_depths,
            "mean": list(self.mean),
            "std": list(self.std),
            "input_range": list(self.input_range),
            "dtype": str(self.dtype).removeprefix("torch."),
            "reduction": _describe_reduction(self.reduction),
            "timm": version("timm"),
            "torch": version("torch"),
        }


def build_encoder(
    *,
    name: str,
    weights: str,
    img_size: int,
    depths: Sequence[int] | None = None,
    normalize_depths: bool = True,
    device: str = "cpu",
    dtype: EncoderDtype = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    reduction: Reducer | None = None,
) -> FrozenEncoder:
    """Build a frozen encoder.

    Args:
        name: A timm vision transformer: AugReg, DeiT, DINOv2 (with or without registers), DINOv3, CLIP, SigLIP, MAE.
        weights: `hub`, `random:SEED`, or the path of a `.safetensors`, `.pt` or `.pth` checkpoint.
        img_size: Side of the square frames in pixels; a multiple of the patch size.
        depths: Blocks whose output is wanted, from 0, negative counting from the end; None is the last block.
        normalize_depths: Whether the model's final norm is applied to every tapped depth; a model that normalises
            only after pooling has none, and its tokens stay raw.
        device: Where to run, such as `cpu`, `cuda` or `cuda:1`.
        dtype: Precision of weights and activations; `auto` is bfloat16 on CUDA and float32 elsewhere.
        mean: Mean per channel in [0, 1], for local weights whose normalisation is not timm's; None is timm's.
        std: Standard deviation per channel, likewise.
        reduction: A reducer that acts before the encoder or inside it; one for cached tokens has no place here.

    Raises:
        VidflowError: No such model, not a plain vision transformer, a size that is no multiple of the patch size,
            a depth out of range, weights that do not fit, a device that is not there, or a reducer that does not fit
            the encoder.
    """
    check_name(name)
    kind = weights_kind(weights)
    # timm draws initial weights from the global generator even when they are overwritten: fork it, and leave no trace.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed(weights) if kind == "random" else 0)
        vit = _create_vit(name, img_size, reduction)
    match kind:
        case "random":
            pass
        case "file":
            load_weights(vit, Path(weights), name=name)
        case "hub":
            load_weights(vit, hub_file(name), name=name)
        case _:
            assert_never(kind)
    target = _resolve_device(device)
    return FrozenEncoder(
        vit=vit,
        name=name,
        weights=weights,
        img_size=img_size,
        depths=depths,
        normalize_depths=normalize_depths,
        device=target,
        dtype=_resolve_dtype(dtype, target),
        mean=_pretrained_cfg(vit)["mean"] if mean is None else mean,
        std=_pretrained_cfg(vit)["std"] if std is None else std,
        reduction=reduction,
    )


def check_name(name: str) -> None:
    """Check that timm knows the model, its tag too, and that it is a vision transformer.

    Raises:
        VidflowError: It is not; the message has the nearest valid names.
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


def outline(name: str) -> tuple[int, int]:
    """Return patch size in pixels and number of blocks of an architecture, without making its weights."""
    with torch.device("meta"):
        vit: Any = timm.create_model(name, pretrained=False)
    return int(vit.patch_embed.patch_size[0]), len(vit.blocks)


def skeleton(name: str, img_size: int) -> TimmVit:
    """Return an encoder without its weights, of which widths and costs can be read.

    Raises:
        VidflowError: No such vision transformer, or a size that is no multiple of its patch size.
    """
    check_name(name)
    with torch.device("meta"):
        return _create_vit(name, img_size, None)


def check_img_size(img_size: int, *, patch_size: int, name: str) -> None:
    """Check that frames divide into whole patches.

    Raises:
        VidflowError: They do not; the message has the nearest sizes that do.
    """
    if img_size < patch_size or img_size % patch_size:
        below = img_size // patch_size * patch_size
        nearest = [size for size in (below, below + patch_size) if size > 0]
        raise VidflowError(
            f"encoder.img_size is {img_size}, but {name!r} has patches of {patch_size} pixels; "
            f"wanted a multiple of {patch_size}, the nearest being {' or '.join(map(str, nearest))}"
        )


def resolve_depths(depths: Sequence[int] | None, *, num_blocks: int) -> list[int]:
    """Turn wanted depths, negative ones counted from the end, into ascending block indices; None is the last block.

    Raises:
        VidflowError: A depth is out of range or named twice, or the list is empty.
    """
    if depths is None:
        return [num_blocks - 1]
    resolved = sorted(depth + num_blocks if depth < 0 else depth for depth in depths)
    if not resolved or resolved[0] < 0 or resolved[-1] >= num_blocks or len(set(resolved)) < len(resolved):
        raise VidflowError(
            f"encoder.depths is {list(depths)}; wanted one or more different blocks between "
            f"0 and {num_blocks - 1} (or between -{num_blocks} and -1, counted from the end)"
        )
    return resolved


def hub_location(name: str) -> tuple[str, str | None]:
    """Return the Hugging Face repository of a model's published weights, and the file's name where it is unusual.

    Raises:
        VidflowError: timm does not know the model, or has no weights for it on the hub.
    """
    check_name(name)
    published = timm.models.get_pretrained_cfg(name)
    if published is None or not published.hf_hub_id or str(published.custom_load) == "hf":
        tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise VidflowError(
            f"encoder.weights is 'hub', but timm has no plain checkpoint of {name!r} on the Hugging Face hub; it has "
            f"{_listed(tagged)} for that architecture. Name one, or give a local file"
        )
    return published.hf_hub_id, published.hf_hub_filename


def load_weights(vit: TimmVit, path: Path, *, name: str) -> None:
    """Load a checkpoint strictly, resampling its position embedding where the grid differs, as timm does.

    Raises:
        VidflowError: The file cannot be read, or a tensor is missing, unexpected or of another shape; all are listed.
    """
    state = {key: value for key, value in _fit_to_model(vit, _read_checkpoint(path), name).items() if _is_wanted(key)}
    wanted = {key: value for key, value in vit.state_dict().items() if _is_wanted(key)}
    problems = [f"missing {key} {tuple(wanted[key].shape)}" for key in sorted(wanted.keys() - state.keys())]
    problems += [f"unexpected {key} {tuple(state[key].shape)}" for key in sorted(state.keys() - wanted.keys())]
    problems += [
        f"{key} is {tuple(state[key].shape)}, wanted {tuple(wanted[key].shape)}"
        for key in sorted(state.keys() & wanted.keys())
        if state[key].shape != wanted[key].shape
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise VidflowError(f"{path} does not fit encoder {name!r}; {len(problems)} tensors differ:\n  {listed}")
    vit.load_state_dict(state, strict=False)


def state_sha256(state: dict[str, Tensor]) -> str:
    """Hash names, shapes, dtypes and bytes of a state dict in the order of its names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pretrained_cfg(vit: TimmVit) -> dict[str, Any]:
    config = vit.pretrained_cfg
    assert isinstance(config, dict), type(config)
    return config


def _create_vit(name: str, img_size: int, reduction: Reducer | None) -> TimmVit:
    """Create the model with initial weights, at the size that its frames will have."""
    vit = timm.create_model(name, pretrained=False, num_classes=0, img_size=img_size, dynamic_img_size=False)
    if not isinstance(vit, TimmVit):
        raise VidflowError(f"encoder.name is {name!r}, a {type(vit).__name__}; wanted a plain vision transformer")
    vit.reset_classifier(0, "")
    patch_size = int(vit.patch_embed.patch_size[0])
    check_img_size(img_size, patch_size=patch_size, name=name)
    grid = (img_size // patch_size, img_size // patch_size)
    if reduction is None:
        return vit
    if isinstance(reduction, InputLowerResolution):
        small_side = reduction.img_size(img_size, patch_size=patch_size)
        vit.set_input_size((small_side, small_side))
        return vit
    if reduction.stage == "post":
        raise ValueError(f"{reduction} reduces cached tokens; call `reduce_clips` on them instead")
    check_blocks(vit)
    if reduction.stage == "block":
        reduction.check(depth=len(vit.blocks), grid=grid)
    return vit


def _describe_reduction(reduction: Reducer | None) -> dict[str, Any] | None:
    if reduction is None:
        return None
    assert is_dataclass(reduction)
    return {"kind": type(reduction).__name__, **asdict(reduction)}


def _is_wanted(key: str) -> bool:
    return not key.startswith(_HEAD_PREFIXES)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError, ValueError, OSError) as error:
        raise VidflowError(f"{path} cannot be read as a checkpoint of tensors: {error}") from error


def _fit_to_model(vit: TimmVit, state: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Apply timm's own conversion of published formats, which also resamples the position embedding."""
    if "radio" in name:
        raise VidflowError(
            f"encoder.name is {name!r}: RADIO checkpoints resample unlike other models and are not offered"
        )
    if isinstance(vit, Eva):
        convert = eva.checkpoint_filter_fn
    elif "flexi" in name:
        convert = partial(vision_transformer.checkpoint_filter_fn, interpolation="bilinear", antialias=False)
    else:
        convert = partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale="deit3" in name)
    # timm would also resample the patch projection; another patch size is another model, so that is refused below.
    patches = state.get("patch_embed.proj.weight")
    if isinstance(patches, Tensor) and patches.ndim == 4 and patches.shape != vit.patch_embed.proj.weight.shape:
        raise VidflowError(
            f"the checkpoint's patch_embed.proj.weight is {tuple(patches.shape)}, but encoder {name!r} has "
            f"{tuple(vit.patch_embed.proj.weight.shape)}: these weights are of another architecture"
        )
    try:
        return dict(convert(state, vit))
    except RuntimeError:
        # A position embedding that no grid explains: unconverted, the caller lists it with all the rest.
        return state


def _cast(vit: TimmVit, *, device: torch.device, dtype: torch.dtype) -> TimmVit:
    """Move and cast the model, keeping the angles of a rotary embedding in float32, where timm computes them."""
    rope = copy.deepcopy(getattr(vit, "rope", None))
    vit = vit.to(device=device, dtype=dtype)
    if rope is not None:
        vit.rope = rope.to(device)
    return vit


def _resolve_device(device: str) -> torch.device:
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise VidflowError(f"encoder.device is {device!r}, but torch sees no CUDA device; use 'cpu'")
    return target


def _resolve_dtype(dtype: EncoderDtype, device: torch.device) -> torch.dtype:
    match dtype:
        case "auto":
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "float16":
            return torch.float16
        case _:
            assert_never(dtype)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


__all__ = ["EncodedFrames", "EncoderDtype", "FrozenEncoder", "build_encoder", "hub_location"]
