"""The rows of `vidflow bench` on sizes that take moments; how fast anything is, nothing here says."""

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from tiny_experiment import TINY

from pipelines.bench import clock, command, cores
from pipelines.bench.cached import CachedRow, _row
from pipelines.bench.clock import Ceiling, Ratio, Target, bench_targets, ratio, take_turns
from pipelines.bench.cores import CoreSizes, count_flops, measure_core
from pipelines.bench.reduction import REMOVED, measure_encoder, merge_in_every_block, merging
from pipelines.bench.scan import measure_scan, plain_scan
from vidflow.config.load import load_config
from vidflow.config.schema import Config, CoreName, Trial
from vidflow.models.cores.selective_scan import selective_scan
from vidflow.models.encoder import build_encoder, shape_of, skeleton
from vidflow.stages.experiment import Experiment

CPU = Target(device=torch.device("cpu"), dtype=torch.float32)
SIZES = CoreSizes(num_frames=3, num_depths=1, num_patches=4, num_prefix=1, embed_dim=32)
TRIAL = Trial(num_layers=1, num_heads=2, readout_dim=16, readout_heads=2, batch_size=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the machine by small products and copies, and everything but for moments."""
    monkeypatch.setitem(clock._MATMUL_SIDE, "cpu", 128)
    monkeypatch.setitem(clock._COPIED_FLOATS, "cpu", 1 << 16)
    monkeypatch.setattr(clock, "_LEAST_SECONDS", 1e-3)


@pytest.fixture
def config(tmp_path) -> Config:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=tmp_path / "root"))
    return load_config([path])


def test_works_take_turns_and_are_timed_once_a_round():
    calls = []
    times = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, CPU.device, rounds=4)
    assert {name: seconds.shape for name, seconds in times.items()} == {"a": (2, 4), "b": (2, 4)}
    assert all((seconds > 0).all() for seconds in times.values())
    runs = [name for index, name in enumerate(calls) if index == 0 or calls[index - 1] != name]
    # Once each to warm up, then in turns.
    assert runs == ["a", "b"] * 5


def test_a_ratio_is_the_median_of_the_rounds_and_not_that_of_medians():
    longer, shorter = np.array([[2.0, 30.0, 8.0], [1.0, 1.0, 1.0]]), np.array([[1.0, 10.0, 2.0], [1.0, 2.0, 4.0]])
    assert ratio(longer, shorter) == Ratio(3.0, 0.5)


def test_the_least_time_is_that_of_operations_or_of_bytes_whichever_is_more():
    ceiling = Ceiling(matmul=np.array([[1e-9, 2e-9], [1e-9, 2e-9]]), copy=np.array([[1e-8, 1e-9], [1e-8, 1e-9]]))
    np.testing.assert_allclose(ceiling.seconds(flops=1e9, num_bytes=5e8), [[5.0, 2.0], [5.0, 2.0]])


@pytest.mark.parametrize("core", get_args(CoreName))
def test_every_core_has_a_row_with_numbers_that_can_be(core):
    row, ceiling = measure_core(core, TRIAL, SIZES, CPU, rounds=2)
    assert row.core == core
    assert row.batch_size == TRIAL.batch_size
    assert min(row.clips_per_second, row.frames_per_second, row.gflops_per_clip, row.mib_per_frame) > 0
    assert min(*row.train_limit, *row.stream_limit, ceiling.gflops, ceiling.gigabytes) > 0
    assert core in str(row)


def test_a_step_of_training_counts_three_times_the_frames_of_a_stream_but_for_the_gradient_of_its_input():
    task = cores._build("identity", TRIAL, SIZES)
    training, stream = count_flops(task, SIZES)
    assert 2 * SIZES.num_frames * stream < training <= 3 * SIZES.num_frames * stream


def test_attention_within_a_frame_is_counted():
    task = cores._build("gated_transformer", TRIAL, SIZES)
    fewest, fewer, few = (
        count_flops(task, dataclasses.replace(SIZES, num_prefix=0, num_patches=number))[1] for number in (4, 8, 12)
    )
    # What grows with the square of N tokens: both attentions of the one layer, 2 N^2 D multiply-accumulates each. Of
    # c N^2 the second difference is 2 c 4^2.
    assert fewest - 2 * fewer + few == 2 * (2 * 2 * 2 * 32) * 4**2


def test_the_bytes_of_a_stream_are_weights_state_and_tokens():
    task = cores._build("gru", TRIAL, SIZES)
    weights = sum(parameter.numel() for parameter in task.parameters())
    # A frame is 4 patch tokens of 32 numbers; the state, of 5 tokens, is read and written.
    assert cores._Streaming(task, SIZES, CPU).num_bytes == 4 * (weights + 2 * 5 * 32 + 4 * 32)


def test_the_plain_scan_and_ours_agree_and_both_are_timed():
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3, 4), (5, 3, 4), (2, 4), (5, 3, 2), (5, 3, 2), (5, 2, 4))
    parts = [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    parts[2] = -parts[2]
    torch.testing.assert_close(plain_scan(*parts), selective_scan(*parts), rtol=1e-12, atol=1e-12)
    row = measure_scan(CPU, 6, num_frames=3, channels=4, rounds=2)
    assert row.num_sequences == 6
    assert min(row.seconds, row.plain, *row.speedup) > 0


def test_an_encoder_has_a_row_for_every_share_of_tokens_removed():
    # Of medians, as a share is a difference of times, which other work on the machine can turn around.
    rows = measure_encoder("test_vit", CPU, img_size=96, most_images=2, rounds=15)
    # 36 patches and 6 blocks.
    assert [(row.removed, row.num_merged, row.tokens_left) for row in rows] == [
        (0.25, 2, 24),
        (0.5, 3, 18),
        (0.75, 4, 12),
        (0.98, 6, 3),
    ]
    assert [row.mean_tokens for row in rows[:3]] == [31.0, 28.5, 26.0]
    assert 1 < rows[0].flop_ratio < rows[1].flop_ratio < rows[2].flop_ratio < rows[3].flop_ratio
    for row in rows:
        assert row.gained.clock == pytest.approx(row.speedup.clock / row.flop_ratio)
        assert min(row.images_per_second, *row.merging_share) > 0


@pytest.mark.parametrize("removed", REMOVED)
def test_the_merging_that_is_timed_alone_is_that_of_the_encoder(removed):
    reducer = merge_in_every_block(removed, shape_of(skeleton("test_vit", 96)))
    encoder = build_encoder(name="test_vit", weights="random:0", img_size=96, reduction=reducer)
    frames = torch.randint(256, (2, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = encoder(frames)
    sizes, assignment = merging(encoder, frames, reducer)()
    assert torch.equal(sizes, wanted.sizes[:, 0])
    assert torch.equal(assignment, wanted.assignment[:, 0])


def test_encoding_again_costs_its_parts_and_reading_bounds_the_gain():
    decode, encode, train, cached = (np.full((2, 3), seconds) for seconds in (0.03, 0.05, 0.02, 0.025))
    row = _row("mean", 10, decode, encode, train, cached)
    assert isinstance(row, CachedRow)
    assert row.speedup == pytest.approx((4.0, 4.0))
    assert row.bound == pytest.approx((5.0, 5.0))
    # 10 clips of 25 and of 100 ms.
    assert str(row).split()[1:3] == ["4.0000", "1.0000"]


def test_a_group_alone_prints_its_rows_and_makes_no_files(config, capsys, monkeypatch):
    monkeypatch.setattr(cores, "measure_core", lambda *given: measure_core(*given, rounds=1))
    command.main(Experiment(config), ["cores"])
    lines = capsys.readouterr().out.splitlines()
    # On every device a title, the names of columns, the cores, the limit and the scan.
    assert len(lines) == len(bench_targets()) * (4 + len(get_args(CoreName)))
    assert [line.split()[0] for line in lines[2:-2]] == list(get_args(CoreName))
    assert lines[-1].startswith("scan:")
    assert not Path(config.root).exists()


def test_an_unknown_group_is_refused_with_the_known_ones(vidflow, tiny):
    done = vidflow("bench", tiny, "--only", "speed")
    assert done.returncode == 2
    assert all(group in done.stderr for group in ("cores", "reduction", "cached", "stages"))


@pytest.mark.slow
def test_caching_is_compared_with_encoding_again_for_every_core_of_the_search(vidflow, tiny):
    done = vidflow("bench", tiny, "--only", "cached")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["mean", "gru"]
    # Cached epochs and encoding ones per second, and milliseconds of a clip and its parts.
    assert all(float(number) > 0 for row in rows for number in (*row[1:3], *row[-4:]))
    assert not (tiny.parent / "root").exists()
