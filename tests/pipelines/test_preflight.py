"""What is wrong with an experiment, of every kind, is said in one message before anything starts."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from pipelines import model_checks
from pipelines.preflight import CHECKS, Flight, find_problems
from vidflow.config.load import draft_config
from vidflow.config.schema import Config, Encoder
from vidflow.stages.experiment import Experiment

ALL_KINDS = {
    "trials.trial.epochs=0": "trials.trial.epochs: got 0",
    "video.sizee=3": "video.sizee: no such setting; did you mean `size`?",
    "trials.objective=val/top2": "trials.objective: got 'val/top2', which classification does not measure",
    "features.base.depths=[99]": "features.base.depths: got the depths [99]; wanted one or more different blocks",
    "features.base.reducer={name: tome, settings: {tokens: 99}}": "features.base.reducer: ",
    "trials.trial.num_heads=5": "trials.trial.num_heads: the core gated_transformer does not fit test_vit",
    "resources.shard.num_cpus=1000": "resources.shard.num_cpus: no worker fits, each takes 1000 CPU and 0 GPU",
    "tracking.uri=http://127.0.0.1:9": "tracking.uri: cannot use http://127.0.0.1:9: no answer within 5 s",
    "resources.ray_address=127.0.0.1:9": "resources.ray_address: no Ray answers at 127.0.0.1:9",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_manifest(folder: Path, annotations: str = "") -> Path:
    path = folder / "mine.csv"
    rows = [f"{name}.mp4,{name},{split},{annotations}" for name, split in (("a", "train"), ("b", "valid"))]
    path.write_text("\n".join(["path,label,split,annotations", *rows, ""]))
    return path


def find(config: Path, steps: tuple[str, ...], *overrides: str) -> list[str]:
    draft = draft_config([config], overrides)
    return find_problems(Flight(draft, Experiment(draft.config), steps, show=True))


def test_problems_of_all_kinds_are_one_message_under_the_users_own_names(here, tiny, tmp_path):
    core = "trials.axes.core=[gated_transformer]"
    wrong = [each for each in ALL_KINDS if not each.startswith("resources.ray")]
    done = here("run", tiny, core, f"video.manifest={write_manifest(tmp_path)}", *wrong, "--print")
    assert done.returncode == 2
    for each in wrong:
        assert ALL_KINDS[each] in done.stderr
    assert "no row of split 'val'; got 'train' (1 rows), 'valid' (1 rows)" in done.stderr
    assert f"{len(wrong) + 1} problems in the configuration; nothing was started" in done.stderr
    assert "encoder.depths" not in done.stderr
    assert not (tmp_path / "root").exists()


def test_a_ray_cluster_that_does_not_answer_is_said(tiny):
    wrong = "resources.ray_address=127.0.0.1:9"
    (problem,) = find(tiny, ("shard",), wrong)
    assert ALL_KINDS[wrong] in problem


def test_what_follows_from_a_mistyped_setting_is_not_said_too(tiny):
    # Without its weights and depths, the default encoder would have a dozen problems.
    assert len(find(tiny, ("extract", "sweep"), "encoder.nme=test_vit", "features.base.depths=[5]")) == 1


def test_processes_of_a_trial_that_do_not_fit_this_machine_are_said(tiny):
    (problem,) = find(tiny, ("sweep",), f"resources.trials.workers_per_trial={2 * os.cpu_count()}")
    assert f"workers_per_trial: no worker fits, each takes {2 * os.cpu_count()} times 1 CPU and 0 GPU" in problem
    assert not find(tiny, ("sweep",), f"resources.trials.workers_per_trial={os.cpu_count()}")


def test_gpus_that_are_not_here_are_said_and_no_more_than_asked_for(tiny, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not find(tiny, ("shard", "extract"))
    assert "there is no GPU" in find(tiny, ("extract",), "resources.device=cuda")[0]
    assert "resources.trials.num_gpus: no worker fits" in find(tiny, ("sweep",), "resources.trials.num_gpus=1")[0]
    assert not find(tiny, ("extract",), "resources.trials.num_gpus=1")


def test_annotations_without_what_a_task_learns_from_are_said(tiny, tmp_path):
    np.savez(tmp_path / "truth.npz", pts_seconds=np.zeros(1), boxes=np.zeros(1))
    manifest = write_manifest(tmp_path, "truth.npz")
    manifest.write_text(manifest.read_text().replace("valid", "val"))
    settings = [f"video.manifest={manifest}", "trials.axes={task: [box_tracking, depth]}"]
    (problem,) = find(tiny, ("sweep",), *settings)
    assert "truth.npz holds boxes, pts_seconds; wanted `depth` for the task depth" in problem


@pytest.mark.parametrize("damage", [b"", b"\x10\0\0\0\0\0\0\0{}"])
def test_weights_that_cannot_be_read_are_said(tiny, tmp_path, damage):
    (tmp_path / "w.safetensors").write_bytes(damage)
    (problem,) = find(tiny, ("extract",), f"encoder.weights={tmp_path}/w.safetensors")
    assert "cannot be read as a checkpoint" in problem


def test_a_server_that_accepts_and_stays_silent_costs_seconds(tiny, monkeypatch):
    monkeypatch.setattr("pipelines.machine_checks._SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        (problem,) = find(tiny, ("sweep",), f"tracking.uri=http://127.0.0.1:{server.getsockname()[1]}")
    assert "no answer within 0.2 s (timed out)" in problem


def test_a_batch_larger_than_memory_is_refused(tiny):
    (problem,) = find(tiny, ("sweep",), "trials.trial.batch_size=2000000000")
    assert problem.startswith("trials.trial.batch_size: one batch of tokens takes")


def test_models_that_have_passed_are_not_built_again_until_a_setting_changes(tiny, monkeypatch):
    assert not find(tiny, ("extract", "sweep"))
    monkeypatch.setattr(model_checks, "_check", lambda *_: (["built again"], None))
    assert not find(tiny, ("extract", "sweep"))
    assert find(tiny, ("extract", "sweep"), "trials.trial.num_layers=2") == ["built again"]


def test_every_check_reads_settings_that_exist(tiny):
    config = draft_config([tiny]).config
    for key in {key for check in CHECKS for key in check.reads}:
        value = config
        for part in key.split("."):
            value = getattr(value, part)


def test_a_passed_check_is_forgotten_when_the_model_in_a_folder_changes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    config = Config(encoder=Encoder(family="videomae", weights=str(tmp_path)))
    note = model_checks._locate_note(config, [])
    assert model_checks._locate_note(config, []) == note
    os.utime(tmp_path / "config.json", ns=(0, 0))
    assert model_checks._locate_note(config, []) != note


def test_a_relative_root_is_refused_on_a_cluster_alone(tiny, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not find(tiny, ("shard",), "root=runs/here")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    (problem,) = find(tiny, ("shard",), "root=runs/here")
    assert problem.startswith("root: got a relative path (")
    assert "wanted an absolute one on a cluster (auto)" in problem
    assert not find(tiny, ("shard",))
