"""Check tensors from files before their values are copied into a module, and compute the digest of a state dict."""

import hashlib
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def tensor_faults(found: Mapping[str, object], wanted: Mapping[str, Tensor]) -> list[str]:
    """Say why a tensor's values cannot be copied, one line per faulty tensor.

    Args:
        found: The tensors to copy.
        wanted: The tensors to copy into, under the same names.
    """
    faults = {name: fault for name, value in found.items() if (fault := _fault(value, wanted[name]))}
    sound = {name: value for name, value in found.items() if name not in faults and isinstance(value, Tensor)}
    return [f"{name} {fault}" for name, fault in faults.items()] + list(_shared_memory(sound))


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold a NaN or an infinity."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def state_sha256(state: dict[str, Tensor]) -> str:
    """Hash names, shapes, dtypes and bytes of a state dict in the order of its names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fault(value: object, wanted: Tensor) -> str | None:
    kinds = _FLOATS if wanted.is_floating_point() else _INTEGERS
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, wanted a tensor"
    if wanted.is_meta:
        return "has no place to go, as the module is on the meta device; move it with to_empty()"
    if value.is_meta:
        return "is on the meta device, without values"
    if value.is_quantized or value.is_nested or value.layout != torch.strided:
        return f"is quantized, nested or sparse ({value.dtype}, {value.layout}), wanted a plain tensor"
    if value.shape != wanted.shape:
        return f"is {tuple(value.shape)}, wanted {tuple(wanted.shape)}"
    if value.dtype not in kinds:
        return f"is {_short(value.dtype)}, wanted {', '.join(map(_short, kinds))}"
    if any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)):
        return "is an expanded view, whose values share memory; make it contiguous"
    # In the target's dtype: a finite float64 number may be infinite in float32.
    if not value.to(wanted.dtype).isfinite().all():
        return f"holds NaN or infinite numbers in {_short(wanted.dtype)}"
    return None


def _shared_memory(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Report pairs of contiguous tensors whose memory overlaps: one of them cannot have its saved values."""
    dense = [(value, name) for name, value in tensors.items() if value.numel() and value.is_contiguous()]
    places = sorted((str(value.device), value.data_ptr(), value.nbytes, name) for value, name in dense)
    for (device, start, size, name), (other_device, other_start, _, other) in pairwise(places):
        if device == other_device and other_start < start + size:
            yield f"{name} and {other} share memory; save each with a copy of its own"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
