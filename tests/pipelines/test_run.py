import contextlib
import json
import os
import re
import shutil
import sqlite3
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
from tiny_experiment import TINY

from vidflow.store.layout import publish_json, read_json


def snapshot(root: Path, pattern: str) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.glob(pattern) if path.is_file()}


def runs(root: Path) -> list:
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


@pytest.fixture(scope="module")
def finished(finished_experiment):
    """A small experiment that has run to its end, and what the command said."""
    return finished_experiment.config, finished_experiment.root, finished_experiment.said


def copy_of(root: Path, folder: Path) -> Path:
    return Path(shutil.copytree(root, folder / "root"))


def own_copy(experiment, in_one_ray, folder: Path) -> tuple[Path, Path]:
    """Return config and root of a copy whose stages are all done, as its videos are scanned where they lie now."""
    copy, config = copy_of(experiment.root, folder), folder / "tiny.yaml"
    config.write_text(TINY.format(root=copy))
    assert in_one_ray("shard", config).returncode == 0
    return config, copy


@pytest.fixture(scope="module")
def grown(finished_experiment, in_one_ray, tmp_path_factory):
    """A copy of the experiment to which tests add."""
    return own_copy(finished_experiment, in_one_ray, tmp_path_factory.mktemp("grown"))


@pytest.fixture(scope="module")
def mended(finished_experiment, in_one_ray, tmp_path_factory):
    """A copy of the experiment that each test harms and makes whole again."""
    return own_copy(finished_experiment, in_one_ray, tmp_path_factory.mktemp("mended"))


def test_run_makes_every_stage_and_names_the_page(finished):
    _, root, said = finished
    assert len(list(root.glob("shards/*/*.tar"))) == 3
    assert len(list(root.glob("features/*/*.arrow"))) == 3
    assert len(list(root.glob("trials/*/result.json"))) == 2
    page = next(root.glob("reports/*/report.html"))
    assert "gru" in page.read_text()
    assert str(page) in said
    assert "RANDOM weights" in said


def test_the_log_of_a_whole_run_is_plain_lines_of_ours_alone(finished):
    _, root, said = finished
    ours = re.compile(r"\d\d:\d\d:\d\d (checking|ray|synth|scan|shard|extract|sweep|report|best trial of|all runs)\b.*")
    assert [line for line in said.splitlines() if not ours.fullmatch(line)] == []
    assert "\r" not in said
    assert "\x1b" not in said
    assert "next: vidflow" not in said  # the next stage started by itself
    assert re.search(rf"scan: 60 files -> {root}/index \([\d.]+ files/s\)", said)
    for core in ("mean", "gru"):
        assert re.search(rf"sweep: core={core} done, 2 of 2 epochs in \d:\d\d, best val/top1 0\.\d+, \d of 2", said)


def test_the_sweep_is_a_parent_run_and_each_trial_a_child_with_its_epochs(finished):
    _, root, _ = finished
    parents = [run for run in runs(root) if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs(root) if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.data.params["core"] for run in children} == {"mean", "gru"}
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    for run in children:
        assert run.info.status == "FINISHED"
        assert [m.step for m in client.get_metric_history(run.info.run_id, "val/top1")] == [1, 2]
        assert {"confusion.png"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
        (data,) = run.inputs.dataset_inputs
        assert json.loads(data.dataset.profile)["num_clips_val"] == 20
        assert [m.step for m in client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")] == [
            1,
            2,
        ]
        # The trivial answer is a tag, because the UI draws a chart for every metric.
        assert float(run.data.tags["baseline/val/top1"]) < 1
        assert not [name for name in run.data.metrics if name.startswith("baseline")]
        (output,) = run.outputs.model_outputs
        model = client.get_logged_model(output.model_id)
        assert (model.status, model.params["core"]) == ("READY", run.data.params["core"])
        assert {metric.key for metric in model.metrics} == {"best/val/top1"}
    parent = parents[0]
    assert {"config.yaml", "report.html"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert parent.data.metrics == {"best/val/top1": max(run.data.metrics["best/val/top1"] for run in children)}
    note = parent.data.tags["mlflow.note.content"]
    assert re.search(r"Best trial \(classification\): \[core=(mean|gru)\]\(#/experiments/1/runs/", note)
    assert f"#/experiments/1/runs/{parent.info.run_id}/artifacts/report.html" in note
    assert "train 40, val 20" in note
    assert parent.data.tags["mlflow.source.name"].startswith("vidflow sweep ")


def test_the_weights_of_a_trial_are_in_mlflow_once(finished):
    _, root, _ = finished
    weights = {path.read_bytes() for path in root.glob("trials/*/best.safetensors")}
    stored = [path for path in root.glob("mlartifacts/**/*") if path.is_file() and path.read_bytes() in weights]
    assert len(stored) == len(weights) == 2


def test_a_run_ends_when_its_trial_ends(finished):
    _, root, _ = finished
    (parent,) = [run for run in runs(root) if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs(root) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    first, last = sorted(children, key=lambda run: run.info.end_time)
    assert first.info.end_time < last.info.end_time <= parent.info.end_time
    result = {path.parent.name: path.stat().st_mtime for path in root.glob("trials/*/result.json")}
    ends = [run.info.end_time / 1000 - result[run.data.tags["vidflow.trial_key"]] for run in (first, last)]
    assert max(ends) < parent.info.end_time / 1000 - min(result.values())


def test_the_manifest_of_the_sweep_names_every_run(finished):
    _, root, _ = finished
    details = json.loads(next(root.glob("sweeps/*/manifest.json")).read_text())["details"]
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    for key, run_id in details["runs"].items():
        run = client.get_run(run_id)
        assert (run.data.tags["vidflow.trial_key"], run.info.experiment_id) == (key, details["experiment_id"])
        assert run.data.tags["mlflow.parentRunId"] == details["run_id"]
    assert details["runs"].keys() == set(details["trials"])


def test_a_trial_whose_recording_was_cut_is_completed_by_the_same_command(mended, in_one_ray):
    config, root = mended
    (parent,) = [run for run in runs(root) if "mlflow.parentRunId" not in run.data.tags]
    cut, *_ = [run for run in runs(root) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    before, count = snapshot(root, "trials/*/*"), len(runs(root))
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    # As a kill after the model, before the end, leaves it.
    client.delete_tag(cut.info.run_id, "vidflow.recorded")
    client.update_run(cut.info.run_id, status="RUNNING")
    for path in root.glob("sweeps/*/manifest.json"):
        path.unlink()
    done = in_one_ray("sweep", config)
    assert done.returncode == 0, done.stderr
    again = client.get_run(cut.info.run_id)
    assert again.info.status == "FINISHED"
    assert again.data.tags["vidflow.recorded"] == cut.data.tags["vidflow.recorded"]
    assert [output.model_id for output in again.outputs.model_outputs] == [
        output.model_id for output in cut.outputs.model_outputs
    ]
    assert snapshot(root, "trials/*/*") == before
    assert len(runs(root)) == count


def test_the_same_command_again_does_nothing_and_says_so(finished, vidflow):
    config, root, _ = finished
    before, count = snapshot(root, "*/*/*"), len(runs(root))
    done = vidflow("run", config)
    assert done.returncode == 0
    for stage in ("synth", "shard", "extract", "sweep", "report"):
        assert f"{stage}: already done" in done.stderr
    assert "ray" not in done.stderr
    assert snapshot(root, "*/*/*") == before
    assert len(runs(root)) == count


def test_other_resources_recompute_nothing(grown, in_one_ray):
    config, _ = grown
    done = in_one_ray("run", config, "resources.shard.workers=1", "resources.frames_per_batch=8")
    assert done.stderr.count("already done") == 5


def test_another_encoder_recomputes_features_and_leaves_shards_alone(grown, in_one_ray):
    config, root = grown
    shards = snapshot(root, "shards/*/*")
    done = in_one_ray("extract", config, "encoder.weights=random:1")
    assert done.returncode == 0, done.stderr
    assert snapshot(root, "shards/*/*") == shards
    assert len(list(root.glob("features/*"))) == 2


def test_a_repeated_sweep_adds_no_run_and_trains_nothing(grown, in_one_ray):
    config, root = grown
    shutil.rmtree(root / "sweeps")
    before, count = snapshot(root, "trials/*/*"), len(runs(root))
    assert in_one_ray("sweep", config).returncode == 0
    assert snapshot(root, "trials/*/*") == before
    assert len(runs(root)) == count


def alter(path: Path) -> None:
    """Flip one bit in the middle of a file, which changes neither its size nor, as far as anybody looks, its time."""
    data, status = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


def say_another_source(entry: Path) -> None:
    """Make a feature file that of a shard with other clips in it."""
    publish_json(entry, {**read_json(entry), "details": {"source": "0" * 64}})


def contents(root: Path, *patterns: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for pattern in patterns for path in sorted(root.glob(pattern))
    }


MADE = (
    "videos/*/*.mp4",
    "videos/*/*.csv",
    "shards/*/*.tar",
    "features/*/*.arrow",
    "trials/*/*.safetensors",
    "[!i]*/*/*.parquet",  # not those of the index, which are kept for later commands
)
HARM = {
    "videos/*/val_00003_*.mp4": Path.unlink,
    "shards/*/shard-000001.tar": Path.unlink,
    "shards/*/shard-000002.tar.json": cut,
    "features/*/*-000000.arrow": cut,
    "features/*/*-000001.arrow.json": say_another_source,
    "features/*/clips.parquet": Path.unlink,
    "features/*/manifest.json": cut,
    "sweeps/*/manifest.json": cut,
    "trials/*/best.safetensors": Path.unlink,
    "reports/*/report.html": Path.unlink,
}


def test_the_same_command_makes_again_what_is_gone_or_cut_and_nothing_else(mended, in_one_ray):
    config, copy = mended
    before, times, count = contents(copy, *MADE), snapshot(copy, "*/*/*"), len(runs(copy))
    harmed = set()
    for pattern, harm in HARM.items():
        path = sorted(copy.glob(pattern))[0]
        harm(path)
        harmed.add(str(path.relative_to(copy)))
    shown = in_one_ray("run", config, "--print")
    assert shown.returncode == 0, shown.stderr
    assert "synth                     " in shown.stdout
    assert " done " not in shown.stdout
    done = in_one_ray("run", config)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert contents(copy, *MADE) == before
    now = snapshot(copy, "*/*/*")
    remade = {name for name, changed in now.items() if times.get(name) != changed and name in before}
    # Of the shard whose list of members was cut, and of the trial, all; tables and the list of videos are written anew.
    assert {name for name in remade if name.endswith((".mp4", ".tar", ".arrow"))} == {
        name.removesuffix(".json")
        for name in harmed
        if name.endswith((".mp4", ".tar", ".tar.json", ".arrow", ".arrow.json"))
    }
    assert len({Path(name).parent for name in remade if name.endswith(".safetensors")}) == 1
    assert {name for name in now if name.startswith("reports/")} == {
        name for name in times if name.startswith("reports/")
    }
    assert len(runs(copy)) == count
    assert in_one_ray("run", config).stderr.count("already done") == 5


@pytest.mark.slow
def test_an_altered_feature_file_ends_the_sweep_with_its_name_and_the_next_run_makes_it_again(mended, in_one_ray):
    config, copy = mended
    before, times = contents(copy, "features/*/*.arrow"), snapshot(copy, "features/*/*.arrow")
    victim = next(copy.glob("features/*/*-000001.arrow"))
    alter(victim)
    more = ["trials.trial.epochs=1"]
    done = in_one_ray("sweep", config, *more)
    assert done.returncode == 1
    assert f"{victim}: its bytes are not those that were written" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(copy.glob("trials/*/last.safetensors"))
    done = in_one_ray("run", config, *more)
    assert done.returncode == 0, done.stderr
    assert contents(copy, "features/*/*.arrow") == before
    now = snapshot(copy, "features/*/*.arrow")
    assert {name for name in now if now[name] != times[name]} == {str(victim.relative_to(copy))}


def test_an_altered_shard_is_found_before_it_is_encoded_and_shard_makes_it_again(mended, in_one_ray):
    config, copy = mended
    before, tar = contents(copy, "shards/*/*.tar"), next(copy.glob("shards/*/shard-000001.tar"))
    alter(tar)
    assert "already done" in in_one_ray("shard", config).stderr
    done = in_one_ray("extract", config, "encoder.weights=random:2")
    assert done.returncode == 1
    assert "shard-000001.tar: its bytes are not those that were written" in done.stderr
    assert "Traceback" not in done.stderr
    assert in_one_ray("extract", config, "encoder.weights=random:2").returncode == 1
    done = in_one_ray("shard", config)
    assert done.returncode == 0, done.stderr
    assert contents(copy, "shards/*/*.tar") == before


@pytest.mark.slow
def test_an_altered_prediction_or_table_ends_the_report_and_the_next_run_makes_it_again(mended, in_one_ray):
    config, copy = mended
    before = contents(copy, *MADE)
    # Not any trial: an earlier test may have left some of other settings, which this report does not read.
    results = {path: json.loads(path.read_text())["settings"] for path in copy.glob("trials/*/result.json")}
    ours = next(path.parent for path, settings in results.items() if settings["epochs"] == 2)
    alter(ours / "predictions.safetensors")
    alter(next(copy.glob("shards/*/clips.parquet")))
    for page in copy.glob("reports/*/report.html"):  # an earlier test may have left one of other settings
        page.unlink()
    done = in_one_ray("report", config)
    assert done.returncode == 1
    assert "predictions.safetensors: its bytes are not those that were written" in done.stderr
    assert "Traceback" not in done.stderr
    for _ in range(2):  # what lies behind the first damage is found by the second
        done = in_one_ray("run", config)
        assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert contents(copy, *MADE) == before


def test_a_video_that_breaks_later_becomes_a_reject_and_ends_with_3(finished, in_one_ray, tmp_path):
    _, root, _ = finished
    copy = copy_of(root, tmp_path)
    for video in sorted(copy.glob("videos/*/val_*.mp4"))[:4]:
        video.write_bytes(video.read_bytes()[:-400])
    mine = [finished[0], f"root={copy}", f"video.manifest={next(copy.glob('videos/*/manifest.csv'))}"]
    done = in_one_ray("shard", *mine)
    assert done.returncode == 3
    assert "4 of 60 rows are rejected" in done.stderr
    assert in_one_ray("shard", *mine, "shards.max_reject_fraction=0.1").returncode == 0
    tables = [pq.read_table(path).to_pylist() for path in copy.glob("shards/*/rejects.parquet")]
    assert [len(rows) for rows in tables if rows] == [4]


def children_of(root: Path, title: str) -> list:
    parents = [run for run in runs(root) if run.info.run_name == title]
    assert len(parents) == 1
    return [run for run in runs(root) if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]


# By the loss, which has no ties: a rate of 1e-6 cannot keep up with 1e-2.
BY_LOSS = [
    "trials.axes={core: [mean], learning_rate: [1e-2, 1e-3, 1e-5, 1e-6]}",
    "trials.objective=val/loss",
    "trials.mode=min",
    "trials.trial.epochs=5",
]
ASHA = ["trials.scheduler=asha", "trials.asha_grace_epochs=1", "report.title=asha"]


def test_asha_stops_trials_early_and_each_is_tracked_to_where_it_came(grown, in_one_ray):
    config, root = grown
    done = in_one_ray("sweep", config, *BY_LOSS, *ASHA)
    assert done.returncode == 0, done.stderr
    children = children_of(root, "asha")
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    epochs = sorted(len(client.get_metric_history(run.info.run_id, "val/loss")) for run in children)
    assert len(children) == 4
    assert epochs[0] < 5 == epochs[-1]
    assert {run.info.status for run in children} == {"FINISHED"}
    statuses = [json.loads(path.read_text())["status"] for path in root.glob("trials/*/result.json")]
    assert statuses.count("stopped") == sum(count < 5 for count in epochs) > 0


@pytest.mark.slow
def test_a_sweep_without_a_scheduler_trains_on_what_another_one_stopped(grown, in_one_ray):
    config, root = grown
    assert in_one_ray("sweep", config, *BY_LOSS, *ASHA).returncode == 0
    assert in_one_ray("sweep", config, *BY_LOSS, "report.title=calm").returncode == 0
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    epochs = [len(client.get_metric_history(run.info.run_id, "val/loss")) for run in children_of(root, "calm")]
    assert epochs == [5] * 4


@pytest.mark.slow
def test_a_store_that_fails_stops_no_trial_and_the_same_command_sends_the_runs_later(grown, in_one_ray):
    config, root = grown
    command = ["sweep", config, "trials.axes={core: [mean], seed: [5, 6]}", "report.title=refused"]
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON metrics BEGIN SELECT RAISE(ABORT, 'no more'); END"
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as store:
        store.execute(refuse)
        store.commit()
        done = in_one_ray(*command)
        store.execute("DROP TRIGGER refuse")
        store.commit()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "sweep: 2 trials in" in done.stderr
    assert "no MLflow run yet" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.match(
        r"vidflow: \d+ records of runs wait in \S+journal, as sqlite:\S+ does not store them \(.*no more", last
    )
    assert "the same command or `vidflow sync " in last
    done = in_one_ray(*command)
    assert done.returncode == 0, done.stderr
    assert "sweep: already done" in done.stderr
    manifests = [json.loads(path.read_text()) for path in root.glob("sweeps/*/manifest.json")]
    assert all(len(each["details"]["runs"]) == len(each["details"]["trials"]) for each in manifests)
    assert {run.info.status for run in children_of(root, "refused")} == {"FINISHED"}


@pytest.mark.slow
def test_optuna_draws_from_a_range_and_a_repeated_search_adds_nothing(grown, in_one_ray):
    config, root = grown
    search = ["trials.algorithm=optuna", "trials.num_samples=3", "trials.trial.core=mean", "report.title=optuna"]
    axes = "trials.axes={learning_rate: {low: 1e-4, high: 1e-2, log: true}}"
    assert in_one_ray("sweep", config, axes, *search).returncode == 0
    rates = {float(run.data.params["learning_rate"]) for run in children_of(root, "optuna")}
    assert len(rates) == 3
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    sweep = next(path.parent for path in root.glob("sweeps/*/started.json"))
    shutil.rmtree(sweep / "tune")
    (sweep / "manifest.json").unlink()
    assert in_one_ray("sweep", config, axes, *search).returncode == 0
    assert {float(run.data.params["learning_rate"]) for run in children_of(root, "optuna")} == rates


def test_a_trial_that_cannot_go_on_is_one_line_and_the_others_are_reported(grown, in_one_ray):
    config, root = grown
    # Of the second the loss is not finite, and Tune is told to try three times.
    axes = "trials.axes={core: [mean], learning_rate: [2e-3, 1e30]}"
    command = [config, axes, "trials.trial.epochs=3", "report.title=half"]
    for stage in ("sweep", "run"):  # the second trains what failed again, and nothing else
        done = in_one_ray(stage, *command)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "attempt 2" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if "the loss is nan" in line]
        assert [line.partition(",")[0] for line in lines] == [
            "sweep: core=mean learning_rate=1e+30 failed",
            "vidflow: 1 of 2 trials failed",
        ]
        assert "sweep: 1 of 2 trials in" in done.stderr
        assert "best core=mean learning_rate=0.002: val/top1" in done.stderr
    assert "core=mean learning_rate=0.002 done" not in done.stderr
    assert f"report: {root}" in done.stderr
    assert "already done" not in in_one_ray("report", *command).stderr.partition("report")[0]
    runs = {run.info.status: run for run in children_of(root, "half")}
    assert set(runs) == {"FINISHED", "FAILED"}
    assert "**Failed**: " in runs["FAILED"].data.tags["mlflow.note.content"]
    assert "mlflow.note.content" not in runs["FINISHED"].data.tags


def test_algm_is_calibrated_on_training_frames_into_settings(grown, in_one_ray):
    config, _ = grown
    algm = "features.fewer={depths: [2], reducer: {name: algm, settings: {global_block: 1}}}"
    done = in_one_ray("calibrate", config, algm)
    assert done.returncode == 0, done.stderr
    settings = done.stdout.split()
    assert [line.rpartition("=")[0].rpartition(".")[2] for line in settings] == ["local_threshold", "global_threshold"]
    assert all(-1 < float(line.rpartition("=")[2]) < 2 for line in settings)
    shown = in_one_ray("extract", config, algm, *settings, "--print")
    assert shown.returncode == 0, shown.stderr
    assert all(str(float(line.rpartition("=")[2])) in shown.stdout for line in settings)
    assert "the only one to calibrate" in in_one_ray("calibrate", config).stderr
