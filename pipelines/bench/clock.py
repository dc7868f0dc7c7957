"""Time pieces of work that take turns in one process, and measure the peak speed of the hardware.

Axes: R rounds.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64

ROUNDS = 5
_LEAST_SECONDS = 0.2
# Side of the square matrices and number of copied floats: far larger than every cache, but less than a second of work.
_MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
_COPIED_FLOATS = {"cpu": 1 << 26, "cuda": 1 << 28}

Work = Callable[[], object]
Seconds = Float64[np.ndarray, "2 R"]
"""Seconds of one call in each round: wall time and processor time; on a GPU both are the GPU's own time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Device that something runs on, and the precision of its matrix products."""

    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        """Name device and precision."""
        dtype = str(self.dtype).removeprefix("torch.")
        if self.device.type == "cpu":
            return f"CPU with {torch.get_num_threads()} thread(s), {dtype}"
        return f"{torch.cuda.get_device_name(self.device)}, {dtype}"


class Ratio(NamedTuple):
    """Median over the rounds of the time of one work divided by the time of another.

    Attributes:
        clock: Ratio of wall times.
        busy: Ratio of processor times, which other processes disturb less.
    """

    clock: float
    busy: float

    def __str__(self) -> str:
        """Show both ratios, because their difference shows how busy the machine was."""
        return f"{self.clock:.2f} ({self.busy:.2f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """Peak speed of the hardware in each round of the same run.

    Attributes:
        matmul: Seconds per floating point operation of a large matrix product.
        copy: Seconds per byte that a large copy reads or writes.
    """

    matmul: Seconds
    copy: Seconds

    @property
    def gflops(self) -> float:
        """Operations of a matrix product per second, in 1e9."""
        return 1e-9 / median(self.matmul)

    @property
    def gigabytes(self) -> float:
        """Bytes read or written per second, in 1e9."""
        return 1e-9 / median(self.copy)

    def seconds(self, *, flops: float, num_bytes: float = 0.0) -> Seconds:
        """Return the least time of a work: the time of its operations or of its bytes, whichever is longer."""
        return np.maximum(flops * self.matmul, num_bytes * self.copy)


def bench_targets() -> list[Target]:
    """Return single precision on the CPU and, if there is a GPU, single precision and bfloat16 on the GPU."""
    targets = [Target(device=torch.device("cpu"), dtype=torch.float32)]
    if torch.cuda.is_available():
        targets += [Target(device=torch.device("cuda"), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    return targets


def ratio(longer: Seconds, shorter: Seconds) -> Ratio:
    """Return the ratio of the times of two works, compared round by round."""
    clock, busy = np.median(longer / shorter, axis=1)
    return Ratio(float(clock), float(busy))


def median(seconds: Seconds) -> float:
    """Return the median wall time over the rounds."""
    return float(np.median(seconds[0]))


def take_turns(works: Mapping[str, Work], device: torch.device, *, rounds: int = ROUNDS) -> dict[str, Seconds]:
    """Time every work once per round; a short work is repeated until it takes long enough to time."""
    repeats = {name: _repeats(work, device) for name, work in works.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            clock, busy = _time(work, device, repeats[name])
            times[name].append((clock / repeats[name], busy / repeats[name]))
    return {name: np.array(each, dtype=np.float64).T for name, each in times.items()}


def ceiling_works(target: Target) -> dict[str, Work]:
    """Return the works that `read_ceiling` needs timed: a large matrix product and a large copy."""
    side, floats = _MATMUL_SIDE[target.device.type], _COPIED_FLOATS[target.device.type]
    a, b = (torch.randn(side, side, device=target.device).to(target.dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.zeros(floats, device=target.device)
    copied = torch.empty_like(source).copy_(source)
    return {"matmul": lambda: torch.mm(a, b, out=product), "copy": lambda: copied.copy_(source)}


def read_ceiling(times: Mapping[str, Seconds], target: Target) -> Ceiling:
    """Turn the times of `ceiling_works` into those of one operation and one byte."""
    side, floats = _MATMUL_SIDE[target.device.type], _COPIED_FLOATS[target.device.type]
    return Ceiling(matmul=times["matmul"] / (2 * side**3), copy=times["copy"] / (2 * 4 * floats))


def affordable(flops: float, target: Target, *, seconds: float, most: int) -> int:
    """Return how many units of `flops` operations a perfect machine does in `seconds`; at least 1, at most `most`."""
    work = ceiling_works(target)["matmul"]
    ceiling = (
        2 * _MATMUL_SIDE[target.device.type] ** 3 / statistics.median(take_turns({"": work}, target.device)[""][0])
    )
    return max(1, min(most, int(seconds * ceiling / flops)))


def _repeats(work: Work, device: torch.device) -> int:
    """Warm up and return how many calls take the least time to measure."""
    _time(work, device, 1)
    first, _ = _time(work, device, 1)
    repeats = math.ceil(_LEAST_SECONDS / max(first, 1e-7))
    if repeats > 1:
        clock, _ = _time(work, device, repeats)
        repeats = math.ceil(_LEAST_SECONDS / max(clock / repeats, 1e-7))
    return repeats


def _time(work: Work, device: torch.device, repeats: int) -> tuple[float, float]:
    """Return the seconds of all calls: wall time, and processor time of this process's threads."""
    if device.type == "cuda":
        start, end = (_event() for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        torch.cuda.synchronize(device)
        seconds = float(start.elapsed_time(end)) / 1e3
        return seconds, seconds
    clock, busy = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        work()
    return time.perf_counter() - clock, time.process_time() - busy


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)
