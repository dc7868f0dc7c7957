"""Merged adapters against the encoder that they were merged into: `vidflow bench CONFIG.yaml --only adapted`.

Weights and adapters are random. Merged adapters are only other weights; heads that read other frames copy keys and
values, and compute nothing.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from pipelines.bench.clock import ROUNDS, Target, affordable, bench_targets, median, ratio, take_turns
from vidflow.config.schema import Adaptation, Config, Encoder
from vidflow.models.encoder import EncoderDtype, FrozenEncoder, build_encoder, shape_of
from vidflow.models.encoder.adapted import build_adapted, merge_adapted
from vidflow.models.reduction.macs import count_macs

ENCODERS = ("vit_small_patch16_224", "vit_base_patch16_224")
IMG_SIZE = 224
NUM_FRAMES = 8
# The published offsets of CLIP ViT-B/16 on Something-Something v2: a third of the heads.
_OFFSETS = {6: [-1, 1, 0, 0, 0, 0], 12: [-1, 1, -2, 2, 0, 0, 0, 0, 0, 0, 0, 0]}
_BATCH_SECONDS = 2.0
HEADER = f"{'encoder':<22} {'heads that read other frames':>28} {'clips/s':>8} {'of the stock encoder':>22}"


def measure_adapted(config: Config) -> Iterator[str]:
    """Yield the lines of every encoder, on each device."""
    torch.set_num_threads(max(1, int(config.resources.extract.num_cpus)))
    for target in bench_targets():
        if target.device.type == "cuda" and target.dtype == torch.float32:
            continue
        yield f"adapted: {target}; clips of {NUM_FRAMES} frames of {IMG_SIZE} pixels; in brackets by processor time"
        yield HEADER
        for name in ENCODERS:
            yield from measure_encoder(name, target, img_size=IMG_SIZE, most_frames=config.resources.frames_per_batch)


def measure_encoder(
    name: str, target: Target, *, img_size: int, most_frames: int, rounds: int = ROUNDS
) -> Iterator[str]:
    """Time the stock encoder and merged ones without and with offsets, in turns."""
    stock = _build(name, "random:0", target, img_size)
    shape = shape_of(stock.vit)
    macs = count_macs(shape, [shape.num_patches] * (shape.depth + 1))
    most_clips = max(1, most_frames // NUM_FRAMES)
    batch_size = affordable(2 * NUM_FRAMES * macs, target, seconds=_BATCH_SECONDS, most=most_clips)
    offsets = _OFFSETS.get(shape.num_heads, [-1] * shape.num_heads)
    encoders = {
        "none": _merged(name, [], target, img_size),
        f"{sum(map(bool, offsets))} of {shape.num_heads}": _merged(name, offsets, target, img_size),
    }
    size = (batch_size, NUM_FRAMES, img_size, img_size, 3)
    frames = torch.randint(256, size, dtype=torch.uint8, device=target.device)
    works = {key: lambda each=each: each.encode(frames) for key, each in {"": stock, **encoders}.items()}
    times = take_turns(works, target.device, rounds=rounds)
    for key in encoders:
        speed = batch_size / median(times[key])
        yield f"{name:<22} {key:>28} {speed:>8.2f} {ratio(times[''], times[key])!s:>22}"


def _merged(name: str, offsets: list[int], target: Target, img_size: int) -> FrozenEncoder:
    """Return an encoder with random adapters in its weights, read from a file."""
    settings = Encoder(name=name, weights="random:0", img_size=img_size)
    adapted = build_adapted(settings, Adaptation(offsets=offsets, temporal_embedding=False), num_frames=NUM_FRAMES)
    for parameter in adapted.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    with tempfile.TemporaryDirectory(prefix="vidflow-bench-") as folder:
        path = Path(folder) / "merged.safetensors"
        path.write_bytes(merge_adapted(adapted, trial="bench"))
        return _build(name, str(path), target, img_size)


def _build(name: str, weights: str, target: Target, img_size: int) -> FrozenEncoder:
    dtype: EncoderDtype = "bfloat16" if target.dtype == torch.bfloat16 else "float32"
    return build_encoder(name=name, weights=weights, img_size=img_size, device=str(target.device), dtype=dtype)


__all__ = ["ENCODERS", "HEADER", "measure_adapted", "measure_encoder"]
