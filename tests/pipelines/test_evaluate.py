"""`vidflow evaluate`: from videos to scores, runs and a page, without a network."""

import csv
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from vidflow.errors import VidflowError
from vidflow.store.features import FeatureReader
from vidflow.training.measure import measure_trial
from vidflow.training.snapshot import load_result

TINY = """\
root: {root}
video: {{synthetic: {{num_train: 2, num_val: 8, size: 48, num_frames: 6, fps: 8}}}}
shards: {{clips_per_shard: 4, image_format: png}}
evaluate:
  models: {{vivit: {{family: vivit, weights: 'random:0', size: tiny}}}}
  axes: {{r: [0, 8], mode: [merge, random_drop]}}
tracking: {{experiment: tiny}}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=tmp_path / "root"))
    return path


def runs(root):
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return parents, [run for run in found if run not in parents]


def stamps(root):
    return {path: path.stat().st_mtime_ns for path in sorted(Path(root).glob("evaluations/*/*.npz"))}


def test_an_evaluation_is_committed_shard_by_shard_and_repeating_it_does_nothing(config, in_one_ray, tmp_path):
    root = tmp_path / "root"
    done = in_one_ray("evaluate", config)
    assert done.returncode == 0, done.stderr
    assert "r=8 random drop constant seed 0" in done.stdout
    made = stamps(root)
    assert len(made) == 3 * 2  # points times shards
    assert {path.parent.parent.name for path in made} == {"evaluations"}

    (page,) = root.glob("evaluations/*/report.html")
    assert "vivit has seeded random weights (random:0)" in page.read_text()
    rows = list(csv.DictReader((page.parent / "points.csv").open()))
    assert [row["mode"] for row in rows] == ["none", "merge", "random_drop"]
    assert [row["num_videos"] for row in rows] == ["8"] * 3
    assert [row["tokens_per_block"] for row in rows] == ["36 36 36 36", *["36 28 20 12"] * 2]
    assert float(rows[0]["gmacs"]) > float(rows[1]["gmacs"]) > float(rows[2]["gmacs"])

    (parent,), children = runs(root)
    assert len(children) == 3
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    (merged,) = (run for run in children if run.data.params["mode"] == "merge")
    assert merged.data.metrics["top1"] == float(rows[1]["top1"])
    assert merged.data.metrics["mcnemar_p"] <= 1

    lost = next(iter(made))
    lost.unlink()
    again = in_one_ray("evaluate", config)
    assert again.returncode == 0, again.stderr
    assert {path for path, stamp in stamps(root).items() if made[path] != stamp} == {lost}
    assert [len(each) for each in runs(root)] == [1, 3]


def test_points_are_shown_with_their_costs_and_nothing_starts(config, here, tmp_path):
    done = here("evaluate", config, "--print")
    assert done.returncode == 0, done.stderr
    assert "3 points of 1 models on split val" in done.stdout
    assert "36 28 20 12" in done.stdout
    assert not (tmp_path / "root").exists()
    assert here("plan", config).stdout == done.stdout


def test_a_configuration_without_models_is_refused_before_any_work(here, tmp_path):
    config = tmp_path / "none.yaml"
    config.write_text(f"root: {tmp_path / 'root'}\nvideo: {{synthetic: {{num_val: 8}}}}\n")
    none = here("evaluate", config)
    assert (none.returncode, "evaluate.models: got none" in none.stderr) == (2, True), none.stderr
    assert not list(tmp_path.glob("root/*/*"))


def test_a_finished_trial_is_measured_on_a_split_as_in_its_training(finished_experiment):
    (features,) = finished_experiment.root.glob("features/*/")
    reader = FeatureReader(features)
    for path in finished_experiment.root.glob("trials/*/best.safetensors"):
        best = load_result(path.parent).best.metrics
        measured, num_clips = measure_trial(path, reader, "val")
        assert {f"val/{name}": value for name, value in measured.items()}.items() <= best.items()
        assert (num_clips, measure_trial(path, reader, "train")[1]) == (20, 40)
        # By video, each clip being one, the shares are the same; all clips of a class as one video are as many answers.
        assert measure_trial(path, reader, "val", by_video=True)[0] == measured
        alone, reader.videos = reader.videos, [str(label) for label in reader.labels]
        num_classes = len({reader.labels[row] for row, split in enumerate(reader.splits) if split == "val"})
        top1 = measure_trial(path, reader, "val", by_video=True)[0]["top1"]
        assert (top1 * num_classes) % 1 == pytest.approx(0, abs=1e-9)
        reader.videos = alone
    with pytest.raises(VidflowError, match=r"no clip of split 'test'; splits found: train, val"):
        measure_trial(path, reader, "test")
    (labels, reader.labels), place = (reader.labels, [*reader.labels]), reader.splits.index("val")
    reader.labels[place] = -1
    with pytest.raises(VidflowError, match=r"1 clips of split `val` have no label, such as"):
        measure_trial(path, reader, "val")
    reader.labels = labels
    reader.metadata["class_names"][reader.labels[0]] = "dance"
    reader.metadata["encoder"]["img_size"] = 16
    with pytest.raises(VidflowError, match="differ from those of the trial in img_size"):
        measure_trial(path, reader, "val")
    reader.metadata["encoder"]["img_size"] = 32
    with pytest.raises(VidflowError, match="no class of the trial, such as 'dance'"):
        measure_trial(path, reader, reader.splits[0])


def test_a_trial_that_is_not_there_is_refused(config, here):
    done = here("evaluate", config, "evaluate.trial=none/there")
    assert (done.returncode, "no such folder" in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_fitted_last_layer_makes_accuracy_mean_something(vidflow, tmp_path):
    root = tmp_path / "root"
    smaller = ["video.synthetic.num_train=300", "video.synthetic.num_val=100", "evaluate.models.vivit.r=[32]"]
    fewer = ["evaluate.models.videomae.r=[]", "evaluate.axes.mode=[merge,drop]"]
    done = vidflow("evaluate", "conf/evaluate_demo.yaml", f"root={root}", *smaller, *fewer)
    assert done.returncode == 0, done.stderr
    (page,) = root.glob("evaluations/*/report.html")
    rows = list(csv.DictReader((page.parent / "points.csv").open()))
    base, merged, dropped = (float(row["top1"]) for row in rows if row["model"] == "vivit")
    assert base > 0.2  # chance is 0.1; the interval of 100 videos reaches from there to 0.17
    assert merged > base - 0.1
    assert dropped <= merged
    assert "The last layer of every model was fitted on split train" in page.read_text()
    # The fitted model is a checkpoint like any other.
    config = json.loads(next(root.glob("heads/*/config.json")).read_text())
    assert len(config["id2label"]) == 10
