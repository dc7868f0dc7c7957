"""A plan beforehand, what it leaves behind, and what the sweep makes of it; on an experiment that takes seconds."""

import dataclasses
import json
import re
from pathlib import Path

import mlflow
import pytest
from tiny_experiment import TINY

from pipelines.plan.command import count_workers, main, num_passes, num_trials
from pipelines.plan.measure import DiskSpeed, _shares
from pipelines.plan.record import StageCost, compare_with_plan, locate_plan
from pipelines.plan.table import PlannedStage, TrialKind, table
from vidflow.config.load import load_config
from vidflow.config.schema import Config, Resources, StageResources
from vidflow.stages.experiment import Experiment
from vidflow.store.layout import FileEntry

REDUCED = """\
features:
  base: {depths: [0]}
  chance: {depths: [0], reducer: {name: random, settings: {keep: 0.5}}}
  deep: {depths: [2], reducer: {name: pool, settings: {window: [1, 2, 2]}}}
trials:
  axes: {core: [gru], features: [base, chance, deep]}
"""
STAGES = ["synth", "scan", "shard", "extract/base", "extract/chance", "extract/deep-dense", "extract/deep", "sweep"]


def write(folder: Path) -> list[Path]:
    tiny, reduced = folder / "tiny.yaml", folder / "reduced.yaml"
    tiny.write_text(TINY.format(root=folder / "root"))
    reduced.write_text(REDUCED)
    return [tiny, reduced]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = load_config(write(tmp_path_factory.mktemp("plan")))
    main(Experiment(config))
    return config


@pytest.fixture(scope="module")
def lines(config: Config) -> dict[str, dict]:
    return {line["stage"]: line for line in json.loads(locate_plan(config).read_text())["lines"]}


def test_every_stage_has_a_line_and_what_is_reduced_from_others_comes_after_them(lines: dict[str, dict]) -> None:
    assert list(lines) == STAGES
    assert all(line["cost"]["seconds"] > 0 for line in lines.values())


def test_nothing_is_left_but_the_plan(config: Config) -> None:
    root = Path(config.root)
    assert {path.name for path in root.iterdir()} == {".lock", "plans"}
    assert [path.name for path in root.glob("plans/*/*")] == ["plan.json"]


def test_tokens_and_bytes_are_those_of_the_settings(lines: dict[str, dict]) -> None:
    # 32 pixels at 16 a patch are 2 x 2 patches; half of them, or windows of 2 x 2, leave 2 and 1.
    tokens = {name: lines[f"extract/{name}"]["tokens_per_frame"] for name in ("base", "chance", "deep-dense", "deep")}
    assert tokens == {"base": 4, "chance": 2, "deep-dense": 4, "deep": 1}
    base, chance = (lines[f"extract/{name}"]["cost"]["num_bytes"] for name in ("base", "chance"))
    # 60 clips of 4 frames with 2 tokens less, of 64 numbers of 2 bytes; sizes (4 bytes a token) and assignments (4
    # bytes a patch) come back on top, and columns of a batch are aligned to 64 bytes.
    saved = 60 * 4 * (2 * 64 * 2 - 2 * 4 - 4 * 4)
    assert base - chance == pytest.approx(saved, abs=60 * 4 * 64)


def test_what_is_made_from_cached_tokens_runs_no_encoder(lines: dict[str, dict]) -> None:
    assert lines["extract/chance"]["gflops_per_frame"] == lines["extract/deep"]["gflops_per_frame"] == 0
    assert lines["extract/deep-dense"]["gflops_per_frame"] > 1.5 * lines["extract/base"]["gflops_per_frame"] > 0


def test_passes_are_counted_of_the_trials_that_read_a_set(config: Config, lines: dict[str, dict]) -> None:
    assert [num_passes(config, name) for name in ("base", "chance", "deep")] == [2, 2, 2]
    assert lines["extract/deep-dense"]["num_passes"] == 0
    assert num_trials(config) == lines["sweep"]["num_units"] == 3


def test_the_plan_has_one_place_whatever_the_resources(config: Config) -> None:
    other = dataclasses.replace(
        config, resources=dataclasses.replace(config.resources, frames_per_batch=8), report=config.report
    )
    assert locate_plan(other) == locate_plan(config)
    longer = dataclasses.replace(config, shards=dataclasses.replace(config.shards, clips_per_shard=7))
    assert locate_plan(longer) != locate_plan(config)


def test_training_steps_on_frames_are_measured_of_the_clips_that_were_packed(tmp_path: Path) -> None:
    adapted = ["adaptations={late: {first_block: 1}}", "trials.trial.adaptation=late"]
    config = load_config(write(tmp_path)[:1], ["trials.trial.feed=shards", "features.base.depths=[-1]", *adapted])
    main(Experiment(config))
    *_, sweep = json.loads(locate_plan(config).read_text())["lines"]
    assert sweep["cost"]["seconds"] > 0


def test_without_a_plan_there_is_nothing_to_compare(tmp_path: Path, config: Config) -> None:
    empty = dataclasses.replace(config, root=str(tmp_path))
    assert compare_with_plan(Experiment(empty), StageCost(seconds=1, num_bytes=1)) == {}


def test_before_the_run_only_the_sweep_can_be_compared(config: Config, lines: dict[str, dict]) -> None:
    metrics = compare_with_plan(Experiment(config), StageCost(seconds=3.0, num_bytes=5))
    assert metrics == {
        "plan/sweep_seconds_predicted": lines["sweep"]["cost"]["seconds"],
        "plan/sweep_seconds_actual": 3.0,
        "plan/sweep_bytes_predicted": lines["sweep"]["cost"]["num_bytes"],
        "plan/sweep_bytes_actual": 5.0,
    }


def line(stage: str, cost: StageCost | None, **changes: object) -> PlannedStage:
    return PlannedStage(stage=stage, cost=cost, num_units=10, num_workers=2, **changes)  # type: ignore[arg-type]


DISK = DiskSpeed(write=1e6, read=2e6)
FEATURES = line(
    "extract/base",
    StageCost(seconds=100, num_bytes=3e6),
    num_frames=4,
    tokens_per_frame=36.0,
    gflops_per_frame=0.5,
    num_passes=5,
    recompute_seconds=500.0,
    read_seconds=120.0,
)


def cells(row: str) -> list[str]:
    return re.split(r" {2,}", row.strip())


def test_the_table_adds_up_time_and_bytes_and_names_the_cheaper_way() -> None:
    text = table([line("shard", None, stored_bytes=7_000_000), FEATURES], DISK, free=1e9)
    assert cells(text[1]) == ["shard", "decode and pack", "10 clips", "done", "7 MB"]
    per_frame = "2.5 s per frame, 300 kB per clip"
    assert cells(text[2]) == [
        "extract", "encode base", "10 clips of 4 frames", per_frame, "1 min 40 s", "50 s", "3 MB"
    ]  # fmt: skip
    assert cells(text[3]) == ["36 tokens and 0.5 GFLOPs per frame"]
    assert "1 min 40 s of work, about 50 s on this machine" in text[5]
    assert "3 MB more on disk, 1 GB are free" in text[5]
    assert "3 MB more in the object store" in table([FEATURES], DISK, free=None)[4]
    assert "read in 5 epochs of all trials; 2 min 0 s if made once and cached, 8 min 20 s if made anew" in text[-1]
    assert text[-1].endswith("-> cached is faster")
    slow = dataclasses.replace(FEATURES, read_seconds=501.0)
    assert table([slow], DISK, free=1e9)[-1].endswith("-> encoding anew would be faster")


def test_feature_sets_of_equal_cost_are_one_row_and_so_are_trials() -> None:
    sets = [dataclasses.replace(FEATURES, stage=f"extract/set{n}") for n in range(5)]
    dearer = dataclasses.replace(FEATURES, stage="extract/dense", tokens_per_frame=64.0)
    gru = TrialKind(name="gru", num_trials=9, epochs=20, epoch_seconds=2.0)
    sweep = line("sweep", StageCost(seconds=360, num_bytes=0), kinds=(gru,))
    text = table([*sets, dearer, sweep], DISK, free=1e9)
    assert cells(text[1])[1:3] == ["encode set0, set1, set2 and 2 more", "5 x 10 clips of 4 frames"]
    assert cells(text[3])[1] == "encode dense"
    assert cells(text[5])[:4] == ["sweep", "train", "9 trials x 40 s", "20 epochs, 2.0 s per epoch"]
    two = dataclasses.replace(sweep, kinds=(gru, dataclasses.replace(gru, name="mamba", epoch_seconds=4.0)))
    assert [cells(row)[:2] for row in table([two], DISK, free=1e9)[2:4]] == [
        ["gru", "9 trials x 40 s"],
        ["mamba", "9 trials x 1 min 20 s"],
    ]


def test_a_disk_that_is_too_small_is_said_so() -> None:
    assert "NOT ENOUGH DISK: 2 MB short" in "\n".join(table([FEATURES], DISK, free=1e6))


def test_workers_are_as_many_as_fit_and_no_more_than_asked() -> None:
    for own in (StageResources(num_cpus=1e6), StageResources(workers=1)):
        assert count_workers(Resources(shard=own), "shard") == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, in_one_ray) -> Path:
    """The root of an experiment that was planned and then run."""
    folder = tmp_path_factory.mktemp("planned")
    paths = write(folder)
    for command in ("plan", "run"):
        done = in_one_ray(command, *paths)
        assert done.returncode == 0, done.stderr
    return folder / "root"


def test_the_sweep_stores_predicted_and_actual_costs_of_every_stage(finished: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{finished / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    metrics = json.loads(Path(client.download_artifacts(parent.info.run_id, "plan.json")).read_text())
    for stage in (stage for stage in STAGES if stage != "scan"):  # which is remembered, but has no manifest
        for what in ("seconds", "bytes"):
            assert metrics[f"plan/{stage}_{what}_predicted"] > 0
            assert metrics[f"plan/{stage}_{what}_actual"] > 0
    for stage in ("extract/base", "extract/chance", "extract/deep", "extract/deep-dense"):
        # The probe's own metadata is shorter than the real one, which every file has in it.
        predicted, actual = (metrics[f"plan/{stage}_bytes_{which}"] for which in ("predicted", "actual"))
        assert predicted == pytest.approx(actual, rel=0.1)


def test_every_stage_says_what_its_workers_took_and_how_long_it_was(finished: Path) -> None:
    manifests = [json.loads(path.read_text()) for path in finished.glob("*/*/manifest.json")]
    assert {manifest["stage"] for manifest in manifests} == {
        "synth", "shard", "extract/base", "extract/chance", "extract/deep, dense", "extract/deep", "sweep", "report"
    }  # fmt: skip
    assert all(manifest["worker_seconds"] > 0 < manifest["wall_seconds"] for manifest in manifests)
    (shard,) = [manifest for manifest in manifests if manifest["stage"] == "shard"]
    entries = [json.loads(path.read_text()) for path in finished.glob("shards/*/*.tar.json")]
    assert shard["worker_seconds"] == pytest.approx(sum(entry["seconds"] for entry in entries))


def test_the_page_sets_score_against_cost_and_shows_what_was_merged(finished: Path) -> None:
    page = next(finished.glob("reports/*/report.html")).read_text()
    for words in ("Score against cost", "Which setting to use", "random, keep 0.5", "What was merged"):
        assert words in page
    assert page.count('alt="frames on val_') == 3
    assert page.count('alt="deep: pool, window [1, 2, 2] on val_') == 3
    assert "chance: random" not in page


@pytest.mark.parametrize(
    ("few", "many", "shares"),
    [(3.0, 7.0, (1.0, 2.0)), (1.0, 5.0, (1.0, 0.0)), (0.5, 5.0, (1.125, 0.0)), (4, 3, (0.6, 0))],
)
def test_what_a_file_takes_besides_its_clips_is_told_apart(few, many, shares):
    files = [
        FileEntry(file="f", num_bytes=0, sha256="", num_clips=count, seconds=seconds, rejects=[], details={})
        for count, seconds in ((1, few), (5, many))
    ]
    # The last by its clips alone: on a busy machine the smaller file may take longer.
    assert _shares(*files, "seconds") == pytest.approx(shares)
