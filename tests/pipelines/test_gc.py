"""`vidflow gc` shows and deletes what no given config refers to, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vidflow.config.load import load_config
from vidflow.models.encoder.merged_file import MergedRecord
from vidflow.stages.experiment import Experiment
from vidflow.stages.garbage import find_garbage, remove_files
from vidflow.stages.references import References, find_references
from vidflow.stages.root_files import RootFiles
from vidflow.stages.scan import ScannedVideo
from vidflow.stages.verify import verify_root
from vidflow.store.layout import publish_json
from vidflow.store.rows import read_rows

HOLD = """
import fcntl, sys
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root(copied_config) -> Path:
    return copied_config.with_name("root")


def files(root: Path) -> set[Path]:
    return set(RootFiles(root).files)


def folder(root: Path, stage: str) -> Path:
    (found,) = root.glob(f"{stage}/*/")
    return found


def test_a_config_refers_to_everything_that_its_run_has_made(here, copied_config, root):
    before = files(root)
    done = here("gc", copied_config, "--yes")
    assert done.returncode == 0, done.stderr
    assert "nothing to delete" in done.stderr
    assert files(root) == before


def test_what_another_config_made_is_shown_and_only_yes_deletes_it(here, copied_config, root, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    (folder(root, "sweeps") / "tune" / "train_0").mkdir(parents=True)
    before = files(root)
    only_gru = [copied_config, "trials.axes.core=[gru]"]
    shown = here("gc", *only_gru)
    assert shown.returncode == 0, shown.stderr
    (mean,) = (line for line in shown.stdout.splitlines() if "classification, mean, base" in line)
    assert "old" in mean
    assert "MLflow keeps the runs" in shown.stdout
    assert "nothing is deleted without --yes" in shown.stderr
    assert files(root) == before
    trial = root / mean.split()[0]
    gone = {
        path
        for path in before
        if path.is_relative_to(trial) or path.relative_to(root).parts[0] in ("sweeps", "reports")
    }
    done = here("gc", *only_gru, "--yes")
    assert done.returncode == 0, done.stderr
    assert before - files(root) == gone
    assert not trial.exists()
    assert not list(root.glob("sweeps/*"))
    assert not verify_root(root, lambda _: "").broken


def test_several_configs_keep_what_any_of_them_refers_to(here, copied_config, root):
    other = copied_config.with_name("other.yaml")
    other.write_text(copied_config.read_text().replace("[mean, gru]", "[gru]"))
    assert "nothing to delete" in here("gc", other, copied_config).stderr
    assert "classification, mean" in here("gc", other).stdout
    other.write_text(other.read_text().replace(str(root), str(root) + "2"))
    done = here("gc", copied_config, other)
    assert done.returncode == 2
    assert "different roots" in done.stderr
    assert "nothing to delete" in here("gc", copied_config, other, "--root", root).stderr


def test_files_of_one_command_are_given_in_quotes(here, copied_config, root):
    both, overlay = copied_config.with_name("both.yaml"), copied_config.with_name("a change.yaml")
    copied_config.rename(both)
    copied_config.write_text(both.read_text().replace("[mean, gru]", "[gru]"))
    overlay.write_text("trials: {axes: {core: [mean, gru]}}")
    assert "classification, mean" in here("gc", copied_config).stdout
    assert "different roots" in here("gc", copied_config, overlay).stderr
    done = here("gc", f"{copied_config} '{overlay}' report.num_examples=8", copied_config)
    assert done.returncode == 0, done.stderr
    assert "nothing to delete" in done.stderr
    assert "No closing quotation" in here("gc", f"{copied_config} report.title='a").stderr


def test_features_without_reduction_stay_for_those_that_are_made_from_them(copied_config, root):
    reduced = ["features.base.reducer.name=tome", "features.base.reducer.place=post"]
    experiment = Experiment(load_config([copied_config], reduced))
    assert experiment.dense("base").directory == folder(root, "features")
    assert folder(root, "features") in find_references(experiment).folders


def test_folders_that_settings_name_by_their_path_stay(copied_config, root):
    trial = next(root.glob("trials/*/"))
    experiment = Experiment(
        load_config([copied_config], [f"evaluate.trial={trial / 'best.safetensors'}", "trials.axes.core=[identity]"])
    )
    assert trial in find_references(experiment).folders


def test_what_a_core_or_an_encoder_was_trained_in_stays(copied_config, root):
    trial = next(each for each in root.glob("trials/*/") if '"gru"' in (each / "result.json").read_text())
    run, merged = "a" * 32, root.with_name("merged.safetensors")
    (root / "initial").mkdir()
    shutil.copy(trial / "best.safetensors", root / "initial" / f"{run}.safetensors")
    for source in (trial.name, run):
        other = ["features.base.depths=[1]", "trials.axes.core=[gru]", f"trials.trial.init_from={source}"]
        kept = find_references(Experiment(load_config([copied_config], other))).folders
        assert {trial, folder(root, "features")} <= kept
    values = dict.fromkeys((each.name for each in fields(MergedRecord)), 0) | {"trial": trial.name}
    save_file({"w": np.zeros(1)}, merged, metadata={"vidflow_merged": json.dumps(values)})
    other = [f"encoder.weights={merged}", "trials.axes.core=[mean]"]
    assert trial in find_references(Experiment(load_config([copied_config], other))).folders


def test_nothing_is_deleted_if_it_is_not_known_what_a_config_refers_to(here, copied_config, root):
    before = files(root)
    os.utime(next(root.glob("videos/*/*.mp4")))
    done = here("gc", copied_config, "trials.axes.core=[gru]", "--yes")
    assert done.returncode == 1
    assert "not all videos" in done.stderr
    assert "vidflow shard" in done.stderr
    assert files(root) == before


def test_older_than_leaves_what_is_young(here, copied_config, root):
    only_gru = [copied_config, "trials.axes.core=[gru]"]
    report = folder(root, "reports")
    for path in report.iterdir():
        os.utime(path, (0, 0))
    done = here("gc", *only_gru, "--older-than", 30, "--yes")
    assert done.returncode == 0, done.stderr
    assert not report.exists()
    assert folder(root, "sweeps").exists()


def test_leftovers_and_replaced_scans_go_too(here, copied_config, root):
    left = folder(root, "shards") / ".shard-000003.tar.0123abcd.tmp"
    damaged = folder(root, "features") / "shard-000000.arrow.damaged"
    plan = root / ".plan-x" / "shard.tar"
    plan.parent.mkdir()
    for path in (left, damaged, plan):
        path.write_text("x")
    (part,) = root.glob("index/*.parquet")
    Experiment(load_config([copied_config])).index.add(read_rows(part, ScannedVideo))
    before = files(root)
    assert here("gc", copied_config, "--yes").returncode == 0
    assert before - files(root) == {left, damaged, plan, part, Path(f"{part}.json")}


def test_links_are_not_followed_and_nothing_outside_is_touched(here, copied_config, root, tmp_path):
    outside = folder(root, "sweeps").rename(tmp_path / "sweep")
    (root / "sweeps" / outside.name).symlink_to(outside)
    (root / "sweeps" / "0123456789abcdef").symlink_to(outside)
    report = folder(root, "reports")
    (report / "linked.html").symlink_to(outside / "manifest.json")
    before = {path: path.stat().st_mtime_ns for path in outside.rglob("*")}
    done = here("gc", copied_config, "trials.axes.core=[gru]", "--yes")
    assert done.returncode == 0, done.stderr
    assert not report.exists()
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == before
    for path in (root / ".." / "x", tmp_path / "x", root):
        with pytest.raises(ValueError, match="not below"):
            list(remove_files(root, [path]))


def test_what_was_evaluated_on_shards_that_stay_stays_if_a_config_evaluates(root):
    for key, source in (("0" * 16, "kept"), ("1" * 16, "other")):
        entry = {"file": f"{key}/shard-000000.npz", "details": {"source": source}}
        publish_json(root / "evaluations" / key / "shard-000000.npz.json", entry)
    everything = {"videos", "shards", "features", "sweeps", "trials", "reports"}
    evaluating = References(shards={"kept"}, evaluates=True, stages=everything)
    assert [each.path.name for each in find_garbage(root, evaluating)] == ["1" * 16]
    assert len(find_garbage(root, References(stages=everything))) == 2


def test_a_kill_at_any_moment_leaves_nothing_that_is_trusted_wrongly(root):
    for garbage in find_garbage(root, References()):
        for _ in remove_files(root, garbage.files):
            assert not verify_root(root, lambda _: "").broken
    assert {path.relative_to(root).parts[0] for path in files(root)} <= {".lock", "index", "mlflow.db"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["gc", "CONFIG", "trials.axes.core=[gru]", "--yes"], ["verify", "CONFIG", "--repair"]]
)
def test_a_root_that_another_command_holds_is_left_alone(vidflow, copied_config, root, words):
    next(root.glob("features/*/*.arrow")).unlink()
    before = files(root)
    words = [str(copied_config) if word == "CONFIG" else word for word in words]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, root / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        done = vidflow(*words)
        holder.stdin.close()
    assert done.returncode == 1
    assert "in use by" in done.stderr
    assert files(root) == before
