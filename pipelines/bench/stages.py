"""Each stage against a bare loop over the same work: `vidflow bench CONFIG.yaml --only stages`.

Loop and stage take turns in the same workers, so a slow or busy machine slows both. Only the ratio is meaningful.
"""

import contextlib
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines import extract, sweep
from pipelines.bench import workers
from pipelines.bench.clock import ROUNDS
from pipelines.placement import Placement
from pipelines.ray_pool import Worker, WorkerPool, log
from pipelines.ray_session import count_workers, place
from vidflow.config.roots import root_path
from vidflow.config.search import draw_candidates
from vidflow.files import file_sha256
from vidflow.stages.address import locate_trial
from vidflow.stages.experiment import Experiment
from vidflow.stages.root_files import RootFiles
from vidflow.stages.verify import verify_root
from vidflow.store.digests import GRACE_SECONDS
from vidflow.store.features import FeatureReader
from vidflow.training.snapshot import find_damage

HEADER = f"{'stage':<8} {'speed':>10} {'bare loop':>10}  {'unit':<10} {'ratio':>5}  what the bare loop does"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        stage: What was measured.
        speed: Units per second of the stage.
        bare: Units per second of the loop.
        unit: What is counted.
        ratio: Median of the rounds' ratios.
        loop: What the loop does.
    """

    stage: str
    speed: float
    bare: float
    unit: str
    ratio: float
    loop: str

    def __str__(self) -> str:
        """Return the line."""
        return (
            f"{self.stage:<8} {self.speed:>10.2f} {self.bare:>10.2f}  {self.unit:<10} {self.ratio:>5.2f}  {self.loop}"
        )


def measure_stages(experiment: Experiment) -> Iterator[str]:
    """Yield one line per stage, then the peak memory of workers at one and ten times the clips."""
    yield HEADER
    for measure in (measure_shard, measure_extract, measure_digests, measure_verify, measure_read, measure_sweep):
        yield str(measure(experiment))
    yield from measure_memory(experiment)


def measure_shard(experiment: Experiment) -> Row:
    """Compare sharding with a loop that decodes and compresses, in the same workers."""
    config, units = experiment.config, experiment.scanned_shards.units
    build = functools.partial(workers.ShardBench, config, str(root_path(config) / "bench"))
    return _compare("shard", build, units, place(config, "shard"), "clips/s", len(units[0].clips), "decode and JPEG")


def measure_extract(experiment: Experiment) -> Row:
    """Compare extraction with the encoder alone on frames in memory, in the same workers."""
    config, work = experiment.config, experiment.finished_shards
    name = next(iter(config.features))
    units, placement = extract.extract_units(experiment.finished(work.address)), place(config, "extract")
    build = functools.partial(
        workers.ExtractBench, config, name, str(work.address.directory), str(root_path(config) / "bench"), placement
    )
    return _compare("extract", build, units, placement, "clips/s", len(work.units[0].clips), "encoder on memory")


def measure_digests(experiment: Experiment) -> Row:
    """Compare the first check of all feature files with a loop of sha256; the line also gives the next check's time."""
    reader = FeatureReader(next(iter(experiment.features.values())).directory)
    paths = sorted(reader.directory.glob("*.arrow"))
    num_gigabytes = sum(path.stat().st_size for path in paths) / 1e9
    time.sleep(GRACE_SECONDS)  # checks of younger files are not remembered
    rounds, again = [], []
    for number in range(ROUNDS):
        bare = _seconds(lambda: [file_sha256(path) for path in paths])
        with _cache_folder(experiment.root / f"checked-{number}"):
            first = _seconds(reader.check_files)
            again.append(_seconds(reader.check_files))
        rounds.append((num_gigabytes / bare, num_gigabytes / first))
    row = _row("digests", rounds, "GB/s", "sha256 of the same files, one by one")
    return dataclasses.replace(
        row, loop=f"{row.loop}; the next check takes {1e6 * statistics.median(again) / len(paths):.0f} us a file"
    )


def measure_verify(experiment: Experiment) -> Row:
    """Compare `vidflow verify` with a loop of sha256 over all files that it reads."""
    files = RootFiles(experiment.root)
    paths = [path for path, role in files.roles.items() if role in ("list", "made", "weights")]
    num_gigabytes = sum(files.states[path].num_bytes for path in paths) / 1e9
    rounds = []
    for _ in range(ROUNDS):
        bare = _seconds(lambda: [file_sha256(path) for path in paths])
        ours = _seconds(lambda: verify_root(experiment.root, find_damage))
        rounds.append((num_gigabytes / bare, num_gigabytes / ours))
    return _row("verify", rounds, "GB/s", f"sha256 of the same {len(paths)} files, one by one")


@contextlib.contextmanager
def _cache_folder(folder: Path) -> Iterator[None]:
    """Record checks in a separate folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        del os.environ["XDG_CACHE_HOME"]
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_read(experiment: Experiment) -> Row:
    """Compare reading every clip through the reader with copying the files' bytes out of a memory map."""
    address = next(iter(experiment.features.values()))
    reader = FeatureReader(address.directory)
    rounds = [
        (workers.copy_files(address.directory, reader[0].tokens.nbytes), workers.copy_clips(reader))
        for _ in range(ROUNDS)
    ]
    return _row("read", rounds, "GB/s", "copy out of a memory map")


def measure_sweep(experiment: Experiment) -> Row:
    """Compare the sweep's wall time with its trials' bare time, shared evenly among the same number of workers."""
    config, features = experiment.config, experiment.features
    candidates = draw_candidates(config)[0]
    bare_root = dataclasses.replace(config, root=str(root_path(config) / "bare"))
    units = [(trial, locate_trial(bare_root, trial, features[trial.features]).directory) for trial in candidates]
    placement = place(config, "trials")
    build = functools.partial(workers.TrialBench, config, features, placement)
    pool = WorkerPool(build, placement, name="bare trials")
    num_workers = min(len(units), count_workers(placement))
    ideal = sum(pool.map(units)) / num_workers
    pool.close()
    started = time.monotonic()
    sweep.main(experiment)
    wall = time.monotonic() - started
    log.info("sweep: %.1f s wall, %.1f s ideal (sum of bare trials / %d workers)", wall, ideal, num_workers)
    return Row(
        stage="sweep",
        speed=len(units) / wall,
        bare=len(units) / ideal,
        unit="trials/s",
        ratio=ideal / wall,
        loop=f"trials without Tune and MLflow; wall {wall:.1f} s, ideal {ideal:.1f} s",
    )


def measure_memory(experiment: Experiment) -> Iterator[str]:
    """Yield the peak memory of a fresh worker after a few clips, and after ten times as many."""
    config, work = experiment.config, experiment.finished_shards
    shard, units = work.units[0], extract.extract_units(experiment.finished(work.address))
    few = dataclasses.replace(shard, clips=shard.clips[: max(1, len(shard.clips) // 10)])
    scratch = str(root_path(config) / "bench")
    packing, encoding = place(config, "shard"), place(config, "extract")
    shard_build = functools.partial(workers.ShardBench, config, scratch)
    extract_build = functools.partial(
        workers.ExtractBench, config, next(iter(config.features)), str(work.address.directory), scratch, encoding
    )
    yield f"{'memory':<8} {'1x MiB':>10} {'10x MiB':>10}  growth"
    for name, build, small, large, placement in (
        ("shard", shard_build, [few], [shard], packing),
        ("extract", extract_build, units[:1], (units * 10)[:10], encoding),
    ):
        one, ten = (_peak_memory(build, chosen, placement) for chosen in (small, large))
        yield f"{name:<8} {one:>10.0f} {ten:>10.0f}  {ten / one:.2f}"


def _peak_memory(build: Callable[[], Worker], units: Sequence[Any], placement: Placement) -> float:
    """Return the peak resident memory (MiB) of one fresh worker and its decoder after the units."""
    alone = dataclasses.replace(placement, workers=1)
    pool = WorkerPool(build, alone, name="memory")
    try:
        peak: float = max(pool.map([("memory", unit) for unit in units]))
        return peak
    finally:
        pool.close()


def _compare(
    stage: str,
    build: Callable[[], Worker],
    units: Sequence[Any],
    placement: Placement,
    unit: str,
    size: int,
    loop: str,
) -> Row:
    """Let loop and stage take turns on the same units in the same workers."""
    pool = WorkerPool(build, placement, name=stage, keeps_idle=True)
    num_workers = min(len(units), count_workers(placement))
    chosen = [units[index % len(units)] for index in range(2 * num_workers)]
    rounds: list[tuple[float, float]] = []
    try:
        _wall(pool, "bare", chosen)  # warms up the workers and the page cache
        rounds += [(_wall(pool, "bare", chosen), _wall(pool, "stage", chosen)) for _ in range(ROUNDS)]
    finally:
        pool.close()
    num_clips = size * len(chosen)
    return _row(stage, [(num_clips / bare, num_clips / wall) for bare, wall in rounds], unit, loop)


def _wall(pool: WorkerPool, mode: str, units: Sequence[Any]) -> float:
    started = time.perf_counter()
    for _ in pool.map([(mode, unit) for unit in units]):
        pass
    return time.perf_counter() - started


def _row(stage: str, speeds: Sequence[tuple[float, float]], unit: str, loop: str) -> Row:
    return Row(
        stage=stage,
        speed=statistics.median(speed for _, speed in speeds),
        bare=statistics.median(bare for bare, _ in speeds),
        unit=unit,
        ratio=statistics.median(speed / bare for bare, speed in speeds),
        loop=loop,
    )
