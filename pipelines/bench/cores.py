"""Temporal cores against the peak speed of the hardware: `vidflow bench CONFIG.yaml --only cores`.

Sizes are those of the config's encoder, clips and trial. The task is classification, so a row is a core with its
readout, and the row of `identity` is the readout alone. Tokens are random.

Axes: B clips, T frames, K tapped depths, N patch tokens, P prefix tokens, D width.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipelines.bench.clock import (
    ROUNDS,
    Ceiling,
    Ratio,
    Target,
    Work,
    affordable,
    bench_targets,
    ceiling_works,
    median,
    ratio,
    read_ceiling,
    take_turns,
)
from pipelines.bench.scan import measure_scan
from vidflow.config.schema import Config, CoreName, Trial
from vidflow.models.tasks import Task
from vidflow.stages.cost import token_sizes
from vidflow.training.batches import Batch
from vidflow.training.optim import Precision, autocast, build_optimizer, step_optimizer
from vidflow.training.recipe import ModuleRecipe, build_module

_NUM_CLASSES = 10
# Longest time of a training step on a perfect machine; it limits the clips per step.
_STEP_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSizes:
    """Sizes of the tokens of an experiment."""

    num_frames: int
    num_depths: int
    num_patches: int
    num_prefix: int
    embed_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreRow:
    """One core.

    Attributes:
        core: Its name.
        batch_size: Clips of a training step.
        clips_per_second: Speed of training.
        train_limit: That speed as a share of what the step's matrix products would allow.
        gflops_per_clip: GFLOPs of a training step's matrix products, counted.
        frames_per_second: Speed of streaming one video, without the encoder.
        stream_limit: That speed as a share of what a frame's matrix products or bytes allow, whichever is slower.
        mib_per_frame: MiB of weights, and of state and tokens in and out.
        stream_bound: Which of the two is slower, `products` or `bytes`.
    """

    core: CoreName
    batch_size: int
    clips_per_second: float
    train_limit: Ratio
    gflops_per_clip: float
    frames_per_second: float
    stream_limit: Ratio
    mib_per_frame: float
    stream_bound: str

    def __str__(self) -> str:
        """Return the line."""
        return (
            f"{self.core:<18} {self.batch_size:>5} {self.clips_per_second:>9.1f} {self.train_limit!s:>12} "
            f"{self.gflops_per_clip:>11.3f} {self.frames_per_second:>9.1f} {self.stream_limit!s:>12} "
            f"{self.mib_per_frame:>9.2f}  {self.stream_bound}"
        )


HEADER = (
    f"{'core':<18} {'batch':>5} {'clips/s':>9} {'of limit':>12} {'GFLOP/clip':>11} {'frames/s':>9} {'of limit':>12} "
    f"{'MiB/frame':>9}  bound by"
)


def measure_cores(config: Config) -> Iterator[str]:
    """Yield the lines of every core and of the scan, on each available device and in each precision."""
    trial, sizes = config.trials.trial, sizes_of(config)
    torch.set_num_threads(max(1, int(config.resources.trials.num_cpus)))
    for target in bench_targets():
        yield (
            f"cores: {target}; {sizes.num_frames} frames of {sizes.num_prefix + sizes.num_patches} tokens of "
            f"{sizes.embed_dim}, {trial.num_layers} layer(s); in brackets by processor time"
        )
        yield HEADER
        ceilings = []
        for name in get_args(CoreName):
            row, ceiling = measure_core(name, trial, sizes, target)
            ceilings.append(ceiling)
            yield str(row)
        gflops, gigabytes = ([getattr(each, unit) for each in ceilings] for unit in ("gflops", "gigabytes"))
        yield (
            f"limit: {min(gflops):.0f} to {max(gflops):.0f} GFLOP/s in a large product, "
            f"{min(gigabytes):.1f} to {max(gigabytes):.1f} GB/s in a large copy, beside the cores"
        )
        num_sequences = trial.batch_size * (sizes.num_prefix + sizes.num_patches)
        yield str(measure_scan(target, num_sequences, num_frames=sizes.num_frames, channels=2 * sizes.embed_dim))


def sizes_of(config: Config) -> CoreSizes:
    """Return the sizes of the tokens that the config's trial is trained on, without token reduction."""
    trial = config.trials.trial
    num_frames, num_patches, num_prefix, embed_dim = token_sizes(config)
    return CoreSizes(
        num_frames=num_frames,
        num_depths=len(config.features[trial.features].depths) if trial.mix_depths else 1,
        num_patches=num_patches,
        num_prefix=num_prefix,
        embed_dim=embed_dim,
    )


def measure_core(
    core: CoreName, trial: Trial, sizes: CoreSizes, target: Target, *, rounds: int = ROUNDS
) -> tuple[CoreRow, Ceiling]:
    """Time training, streaming, a large product and a large copy in turns."""
    task = _build(core, trial, sizes)
    train_flops, stream_flops = count_flops(task, sizes)
    task = task.to(target.device)
    batch_size = affordable(train_flops, target, seconds=_STEP_SECONDS, most=trial.batch_size)
    streaming = _Streaming(copy.deepcopy(task).eval(), sizes, target)
    training = _Training(task.train(), random_batch(sizes, batch_size, target.device), trial, target)
    works: dict[str, Work] = {"train": training, "stream": streaming, **ceiling_works(target)}
    times = take_turns(works, target.device, rounds=rounds)
    ceiling = read_ceiling(times, target)
    by_products = ceiling.seconds(flops=stream_flops)
    by_both = ceiling.seconds(flops=stream_flops, num_bytes=streaming.num_bytes)
    row = CoreRow(
        core=core,
        batch_size=batch_size,
        clips_per_second=batch_size / median(times["train"]),
        train_limit=ratio(ceiling.seconds(flops=train_flops * batch_size), times["train"]),
        gflops_per_clip=train_flops / 1e9,
        frames_per_second=1 / median(times["stream"]),
        stream_limit=ratio(by_both, times["stream"]),
        mib_per_frame=streaming.num_bytes / 2**20,
        stream_bound="bytes" if median(by_both) > median(by_products) else "products",
    )
    return row, ceiling


def count_flops(task: Task, sizes: CoreSizes) -> tuple[int, int]:
    """Count the floating point operations of matrix products: of a training step per clip, and of streaming per frame.

    Counted on the CPU with plain attention, because the products of fused kernels there are not counted. Operations
    that are not products, such as the recurrence of a scan, are not counted.
    """
    batch = random_batch(sizes, 1, torch.device("cpu"))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as training:
        torch.autograd.backward(task.loss(task(batch.tokens, batch.prefix, {}), batch.targets))
    task.zero_grad(set_to_none=True)
    prefix = None if batch.prefix is None else batch.prefix[:, 0]
    # With gradients, because without them torch uses a fast path of attention whose products are not counted either.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as streaming:
        copy.deepcopy(task).eval().step(batch.tokens[:, 0], prefix, {})
    return training.get_total_flops(), streaming.get_total_flops()


def random_batch(sizes: CoreSizes, batch_size: int, device: torch.device) -> Batch:
    """Draw the tokens and labels of a batch."""
    rows = (batch_size, sizes.num_frames)
    return Batch(
        indices=np.arange(batch_size),
        tokens=torch.randn(*rows, sizes.num_depths, sizes.num_patches, sizes.embed_dim, device=device),
        prefix=torch.randn(*rows, sizes.num_prefix, sizes.embed_dim, device=device) if sizes.num_prefix else None,
        targets={"label": torch.randint(_NUM_CLASSES, (batch_size,), device=device)},
    )


def train_on(
    batches: Sequence[Batch], task: Task, optimizer: torch.optim.AdamW, trial: Trial, precision: Precision
) -> None:
    """Take one training step per batch that is on the device."""
    for batch in batches:
        with autocast(batch.tokens.device, precision):
            predictions = task(batch.tokens, batch.prefix, task.queries_of(batch.targets))
        torch.autograd.backward(task.loss(predictions, batch.targets))
        step_optimizer(optimizer, learning_rate=trial.learning_rate, grad_clip=trial.grad_clip)


def _build(core: CoreName, trial: Trial, sizes: CoreSizes) -> Task:
    return build_module(
        ModuleRecipe(
            task="classification",
            core=core,
            embed_dim=sizes.embed_dim,
            num_layers=trial.num_layers,
            num_heads=trial.num_heads,
            # Longer groups cannot be streamed.
            vtm_groups=(1, 1, 1),
            num_depths=sizes.num_depths,
            num_classes=_NUM_CLASSES,
            readout_dim=trial.readout_dim,
            readout_heads=trial.readout_heads,
            every_frame_weight=trial.every_frame_weight,
        )
    )


def _precision(target: Target) -> Precision:
    return "bfloat16" if target.dtype == torch.bfloat16 else "float32"


class _Training:
    """A training step on the same batch every time."""

    def __init__(self, task: Task, batch: Batch, trial: Trial, target: Target) -> None:
        self._task, self._batch, self._trial, self._precision = task, batch, trial, _precision(target)
        self._optimizer = build_optimizer(task, weight_decay=trial.weight_decay)

    def __call__(self) -> None:
        train_on([self._batch], self._task, self._optimizer, self._trial, self._precision)


class _Streaming:
    """The next frame of one endless video.

    Attributes:
        num_bytes: Least number of bytes to move: weights and tokens in, state in and out.
    """

    def __init__(self, task: Task, sizes: CoreSizes, target: Target) -> None:
        self._task, self._target, device = task, target, target.device
        batch = random_batch(sizes, 1, device)
        self._tokens, self._prefix = batch.tokens[:, 0], None if batch.prefix is None else batch.prefix[:, 0]
        self._state = task.init_stream(1, sizes.num_prefix + sizes.num_patches, device=device)
        state = sum(part.nbytes for group in self._state for part in group)
        weights = sum(parameter.nbytes for parameter in task.parameters())
        self.num_bytes = weights + 2 * state + batch.tokens[:, 0].nbytes

    def __call__(self) -> None:
        with torch.inference_mode(), autocast(self._target.device, _precision(self._target)):
            _, self._state = self._task.step(self._tokens, self._prefix, {}, self._state)
