import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vidflow.records import EpochResult
from vidflow.training.snapshot import Snapshot, TrialIdentity, read_tensors, write_snapshot


@pytest.fixture
def root(finished_experiment, tmp_path) -> Path:
    """A copy of a finished experiment's root, below a folder `runs`."""
    return shutil.copytree(finished_experiment.root, tmp_path / "runs" / "tiny")


def rows_of(text: str, title: str) -> list[dict[str, str]]:
    """The rows of one table: heading -> cell."""
    head, *lines = next(block for block in text.split("\n\n") if block.lstrip().startswith(title)).splitlines()
    starts = [found.start() for found in re.finditer(r"(?:(?<=  )|^)\S", head)]
    ends = [*starts[1:], None]
    return [{head[a:b].strip(): line[a:b].strip() for a, b in zip(starts, ends, strict=True)} for line in lines]


def contents(root: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def test_the_experiments_below_runs_are_listed_with_who_uses_what(here, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = here("ls")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert text.startswith("runs/tiny\n")
    keys = {name: [path.name for path in root.glob(f"{name}/*/")] for name in ("shards", "features", "sweeps")}
    (shards,), (features,), (sweep,) = (rows_of(text, name) for name in keys)
    assert [shards["shards"], features["features"], sweep["sweeps"]] == [name for (name,) in keys.values()]
    assert (shards["state"], shards["clips"], shards["used by"]) == ("done", "60", "features base")
    assert (features["name"], features["encoder"]) == ("base", "test_vit@32")
    assert features["used by"] == f"sweep {sweep['sweeps']}, 2 trials"
    trials = rows_of(text, "trials")
    runs = json.loads(next(root.glob("sweeps/*/manifest.json")).read_text())["details"]["runs"]
    assert {trial["trials"]: trial["MLflow run"] for trial in trials} == runs
    assert {trial["core"] for trial in trials} == {"mean", "gru"}
    for trial in trials:
        result = json.loads((root / "trials" / trial["trials"] / "result.json").read_text())
        best = next(epoch for epoch in reversed(result["history"]) if epoch["is_best"])
        assert trial["best"] == f"val/top1 {100 * best['metrics']['val/top1']:.1f} %"
        assert trial["epoch"] == f"{best['epoch']} of 2"
        assert trial["state"] == "completed"
    assert sweep["best"].startswith(trials[0]["trials"])
    assert f"vidflow predict runs/tiny/trials/{trials[0]['trials']} VIDEO" in text


def test_json_has_every_metric_and_setting(here, root):
    (experiment,) = json.loads(here("ls", root, "--json").stdout)["experiments"]
    assert experiment["root"] == str(root)
    first, second = experiment["trials"]
    assert first["score"] == first["metrics"]["val/top1"] >= second["score"]
    assert first["settings"]["num_layers"] == 1
    assert first["features"] == experiment["features"][0]["key"]
    assert first["sweeps"] == [experiment["sweeps"][0]["key"]]
    assert experiment["features"][0]["num_bytes"] > 200_000


def test_what_is_unfinished_or_damaged_is_said_and_nothing_is_changed(here, root):
    tar = next(root.glob("shards/*/*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1])
    next(root.glob("features/*/manifest.json")).unlink()
    manifest = next(root.glob("sweeps/*/manifest.json"))
    manifest.write_text(manifest.read_text() + " x")
    result = next(root.glob("trials/*/result.json"))
    result.unlink()
    before = contents(root)
    text = here("ls", root).stdout
    states = {name: rows_of(text, name)[0]["state"] for name in ("shards", "features", "sweeps")}
    assert states == {"shards": "damaged", "features": "unfinished", "sweeps": "unreadable"}
    trials = {trial["trials"]: trial for trial in rows_of(text, "trials")}
    assert trials[result.parent.name]["state"] == "unfinished"
    assert trials[result.parent.name]["core"] in ("mean", "gru")  # from the header of its weights
    assert contents(root) == before


def test_what_belongs_to_a_config_is_marked(here, finished_experiment):
    text = here("ls", finished_experiment.config).stdout
    assert text.count("\n* ") == 1 + 1 + 1 + 2 + 1
    other = here("ls", finished_experiment.config, "trials.axes.core=[gru]").stdout
    assert other.count("\n* ") == 1 + 1 + 0 + 1 + 1
    unknown = here("ls", finished_experiment.config, f"trials.trial.init_from={'a' * 32}")
    assert (unknown.returncode, unknown.stdout.count("\n* ")) == (0, 1 + 1 + 0 + 0 + 1), unknown.stderr


def test_a_trial_that_is_still_training_shows_its_epochs_so_far(here, root, tmp_path):
    trial = next(root.glob("trials/*/"))
    _, metadata = read_tensors(trial / "best.safetensors")
    (trial / "result.json").unlink()
    epochs = tuple(EpochResult(epoch=n, metrics={"val/top1": n / 8}, is_best=n == 1) for n in (1, 2, 3))
    snapshot = Snapshot(identity=TrialIdentity(**metadata["identity"]), history=epochs, model={}, optimizer={})
    write_snapshot(trial, snapshot)
    row = next(row for row in rows_of(here("ls", root).stdout, "trials") if row["trials"] == trial.name)
    assert (row["state"], row["epoch"], row["best"]) == ("unfinished", "1 of 3", "val/top1 12.5 %")


def test_a_place_without_experiments_is_said(here, tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    assert here("ls").stdout == f"no experiment below {tmp_path / 'runs'}; name a root or a config\n"
    assert json.loads(here("ls", "--json").stdout) == {"experiments": []}
    done = here("ls", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no experiment here; wanted its root" in done.stderr
    assert "nothing here yet; make it with `vidflow run" in here("ls", tiny).stderr


def test_ls_answers_without_ray_torch_and_mlflow(finished_experiment):
    code = (
        "import sys\nfrom pipelines.cli import main\n"
        "try:\n    main(['ls', *sys.argv[1:]])\nexcept SystemExit as left:\n    assert not left.code\n"
        "assert not {'ray', 'torch', 'mlflow'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, finished_experiment.config]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
