"""Files of merged adapters: the weights of an image encoder under timm's names, and what joins the frames of a clip."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from vidflow.errors import VidflowError
from vidflow.models.encoder.clip_blocks import HeadOffsets
from vidflow.models.encoder.clip_parts import ClipParts
from vidflow.models.encoder.inti_reconstructed import IntiReconstructed
from vidflow.models.encoder.loading import load_tensors, read_checkpoint
from vidflow.models.encoder.vit import TimmVit
from vidflow.models.tensor_checks import tensor_faults

_METADATA = "vidflow_merged"
_EMBEDDING = "temporal_embedding"
_INTI = "inti_reconstructed"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedRecord:
    """What a file of merged adapters says of itself.

    Attributes:
        name: timm's name of the encoder.
        base_sha256: Digest of the weights that the adapters were trained on.
        trial: Key of the trial that trained them.
        scale: Factor of the adapters' output.
        rank: Rank of the adapters.
        offsets: The frame that each head reads; empty is its own.
        first_block: First adapted block.
        num_frames: Frames of a clip in training.
        temporal_embedding: Whether clips must have as many frames.
        interpolate_after: Numbers of blocks behind which there is an InTI layer.
        mean: Mean per channel of the frames.
        std: Standard deviation per channel.
    """

    name: str
    base_sha256: str
    trial: str
    scale: float
    rank: int
    offsets: tuple[int, ...]
    first_block: int
    num_frames: int
    temporal_embedding: bool
    interpolate_after: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_record(path: Path) -> MergedRecord | None:
    """Return what a file says of itself; None if it is none of merged adapters.

    Raises:
        VidflowError: It is damaged, or was written by another version.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_METADATA)
    except (SafetensorError, OSError):
        return None  # what reads the tensors says what is wrong
    if text is None:
        return None
    try:
        values: dict[str, Any] = json.loads(text)
        values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return MergedRecord(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise VidflowError(
            f"{path}: its record of merged adapters cannot be read ({error}); merge the trial again with this version"
        ) from error


def pack_merged(vit: TimmVit, parts: ClipParts, record: MergedRecord) -> bytes:
    """Return the contents of a file: a model and what joins its frames, in float32."""
    tensors = {name: value.float().contiguous() for name, value in vit.state_dict().items()}
    if parts.embedding is not None:
        tensors[_EMBEDDING] = parts.embedding.detach().float().contiguous()
    for after, layer in parts.inti.items():
        tensors |= {f"{_INTI}.{after}.{name}": value.float() for name, value in layer.state_dict().items()}
    return save(tensors, metadata={_METADATA: json.dumps(asdict(record))})


def load_merged(vit: TimmVit, path: Path, record: MergedRecord, *, name: str) -> ClipParts:
    """Load a file of merged adapters strictly, and return what joins the frames.

    Raises:
        VidflowError: It is of another model, or tensors do not fit.
    """
    if record.name != name:
        raise VidflowError(
            f"encoder.name is {name!r}, but {path} holds merged adapters of {record.name!r}; set that name"
        )
    found = read_checkpoint(path)
    joining = {key: found.pop(key) for key in list(found) if key == _EMBEDDING or key.startswith(f"{_INTI}.")}
    kept = {key: found.pop(key) for key in give_biases(vit, found)}
    load_tensors(vit, found, path=path, name=name, kept=kept)
    return _parts_of(vit, joining, record, path)


def give_biases(vit: nn.Module, names: Iterable[str]) -> list[str]:
    """Give linear maps of the blocks the biases that are named and that they lack; return these names.

    Merging gives a bias to maps that had none. EVA's two biases, of queries and values, become one with that of keys.
    """
    modules: dict[str, Any] = dict(vit.named_modules())
    given: list[str] = []
    for name in names:
        linear = modules.get(name.removesuffix(".bias"))
        if not name.endswith(".bias") or not isinstance(linear, nn.Linear) or getattr(linear, "bias", None) is not None:
            continue
        owner = modules[name.rpartition(".qkv.")[0]] if ".qkv." in name else None
        if isinstance(owner, EvaAttention):
            join_eva_biases(owner)
        if getattr(linear, "bias", None) is None:
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features), requires_grad=False)
        given.append(name)
    return given


def join_eva_biases(attention: Any) -> None:
    """Turn EVA's biases of queries and values, without one of keys, into one bias of the joint map."""
    if getattr(attention, "q_bias", None) is not None:
        joint = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        attention.qkv.bias = nn.Parameter(joint, requires_grad=False)
        attention.q_bias = attention.k_bias = attention.v_bias = None


def _parts_of(vit: TimmVit, joining: dict[str, Tensor], record: MergedRecord, path: Path) -> ClipParts:
    rows, columns = vit.patch_embed.grid_size
    num_prefix, width = int(vit.num_prefix_tokens), int(vit.embed_dim)
    inti = {
        after: IntiReconstructed(width, grid=(int(rows), int(columns)), num_prefix=num_prefix)
        for after in record.interpolate_after
    }
    embedding = torch.empty(record.num_frames, width)
    wanted = {_EMBEDDING: embedding} if record.temporal_embedding else {}
    wanted |= {f"{_INTI}.{after}.{key}": v for after, layer in inti.items() for key, v in layer.state_dict().items()}
    problems = [f"missing {key}" for key in sorted(wanted.keys() - joining.keys())]
    problems += [f"unexpected {key}" for key in sorted(joining.keys() - wanted.keys())]
    problems += tensor_faults({key: joining[key] for key in wanted.keys() & joining.keys()}, wanted)
    if len(record.offsets) not in (0, int(vit.blocks[0].attn.num_heads)):  # type: ignore[union-attr, arg-type]
        problems.append(f"offsets of {len(record.offsets)} heads")
    if problems:
        listed = "\n  ".join(problems)
        raise VidflowError(f"{path} does not fit encoder {record.name!r}:\n  {listed}")
    for after, layer in inti.items():
        prefix = f"{_INTI}.{after}."
        layer.load_state_dict({k.removeprefix(prefix): v for k, v in joining.items() if k.startswith(prefix)})
    return ClipParts(
        offsets=HeadOffsets(record.offsets, record.first_block), embedding=joining.get(_EMBEDDING), inti=inti
    )


__all__ = ["MergedRecord", "give_biases", "join_eva_biases", "load_merged", "pack_merged", "read_record"]
