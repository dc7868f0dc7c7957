"""Pre-training on the cache, and trials that start from it, from the command to the page and to MLflow."""

import shutil
from pathlib import Path

import pytest
from tiny_experiment import TINY

from vidflow.config.load import load_config
from vidflow.config.search import draw_candidates, objective_of
from vidflow.stages.experiment import Experiment
from vidflow.stages.trained import read_sweeps
from vidflow.training.snapshot import BEST, LAST, read_tensors
from vidflow.training.trial import run_trial

HIDDEN = ["trials.trial.task=masked_tokens", "trials.axes={core: [gru], mask_choice: [random, importance]}"]


def best_files(root):
    return {file.parent.name: file.read_bytes() for file in Path(root).glob(f"trials/*/{BEST}")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_core_is_pre_trained_resumed_and_started_from_with_its_origin_in_mlflow(here, in_one_ray, tmp_path):
    from mlflow import MlflowClient

    path, root = tmp_path / "tiny.yaml", tmp_path / "root"
    path.write_text(TINY.format(root=root))
    done = in_one_ray("run", path, *HIDDEN)
    assert done.returncode == 0, done.stderr
    (sweep,) = read_sweeps(root)
    runs, trained = sweep.runs, best_files(root)
    assert f"trials.trial.init_from={runs[sweep.best_trial().key]}" in done.stderr
    (page,) = root.glob("reports/*/report.html")
    assert "start from it" in page.read_text()

    # A driver that was killed after the first epoch leaves this; the same command ends with the same bytes.
    experiment = Experiment(load_config([path], HIDDEN))
    trial = draw_candidates(experiment.config)[0][0]
    address = experiment.trial(trial)
    shutil.rmtree(address.directory)
    shutil.rmtree(experiment.sweep.directory)
    begun = run_trial(
        trial,
        experiment.clips_of("base", "features"),
        directory=address.directory,
        key=address.fingerprint,
        objective=objective_of(experiment.config.trials, trial.task),
        device="cpu",
    )
    next(begun)
    begun.close()
    assert (address.directory / LAST).exists()
    done = in_one_ray("sweep", path, *HIDDEN)
    assert done.returncode == 0, done.stderr
    assert best_files(root) == trained

    key, run = address.fingerprint, runs[address.fingerprint]
    unfit = in_one_ray(
        "sweep", path, f"trials.trial.init_from={key}", "trials.trial.num_layers=2", "trials.axes.core=[gru]"
    )
    assert unfit.returncode == 2
    assert "nothing was started" in unfit.stderr
    assert "num_layers is 1, wanted 2; core.gru.bias_hh_l1 is missing" in unfit.stderr
    assert here("predict", address.directory, "video.mp4").stderr.count("only trains a core") == 1

    grid = f"trials.axes={{core: [gru], init_from: [null, {run}, {address.directory}], train_fraction: [0.25, 1.0]}}"
    done = in_one_ray("run", path, grid)
    assert done.returncode == 0, done.stderr
    started = best_files(root).keys() - trained.keys()
    # Both names are those of the same weights, so they name the same trials.
    assert len(started) == 4
    origins = {each: read_tensors(root / "trials" / each / BEST)[1]["identity"]["initial"] for each in started}
    assert sorted(origin.get("trial", "") for origin in origins.values()) == ["", "", key, key]
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    newest = next(each for each in read_sweeps(root) if key not in each.keys)
    for each, origin in origins.items():
        tags = client.get_run(newest.runs[each]).data.tags
        named = {"trial": key, "sha256": origin["sha256"], "run": run} if origin else {}
        assert {f"vidflow.init_from.{k}": v for k, v in named.items()} == {
            k: v for k, v in tags.items() if k.startswith("vidflow.init_from")
        }
    assert here("verify", root).returncode == 0
    copy = root / "initial" / f"{run}.safetensors"
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert here("verify", root).returncode == 1
    again = here("plan", path, grid)  # copies it once more
    assert (again.returncode, copy.read_bytes()) == (0, whole), again.stderr
    assert here("gc", path, grid).stdout.count(key) == 0
