"""The Python that the README and the notebook show runs as it is written, on a finished experiment."""

import contextlib
import io
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import vidflow
from vidflow.config.tasks import Objective
from vidflow.config.tracking_uri import default_uri
from vidflow.errors import VidflowError
from vidflow.store.features import FeatureReader
from vidflow.training.snapshot import read_tensors
from vidflow.training.trial import run_trial

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def best(finished_experiment) -> Path:
    """The folder of the best trial."""
    return vidflow.load(finished_experiment.root).file.parent


def run_id_of(experiment, trial: Path) -> str:
    import mlflow

    client = mlflow.MlflowClient(default_uri(experiment.root))
    ids = [each.experiment_id for each in client.search_experiments()]
    return client.search_runs(ids, f"tags.`vidflow.trial_key` = '{trial.name}'")[0].info.run_id


def test_the_examples_of_the_readme_run(finished_experiment, best, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    blocks = re.findall(r"```python\n(.*?)```", (TOP / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    places = {
        "conf/demo.yaml": str(finished_experiment.config),
        "sqlite:///runs/demo/mlflow.db": default_uri(finished_experiment.root),
        "RUN_ID": run_id_of(finished_experiment, best),
        "video.mp4": str(next(finished_experiment.root.glob("videos/*/val_*.mp4"))),
    }
    printed = ""
    for block in blocks:
        for written, place in places.items():
            block = block.replace(written, place)
        names = {}
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(block, "README.md", "exec"), names)
        printed += said.getvalue()
        if "answer" in names:
            assert names["answer"]["names"].shape == (10,)
        if "table" in names:
            assert len(names["table"]) == 4
        if "batch" in names:
            assert names["batch"]["tokens"].shape == (8, 4, 1, 4, 64)
    assert printed.count("pts_seconds") == 4


def test_the_notebook_runs(finished_experiment):
    notebook = json.loads((TOP / "conf" / "features.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    matplotlib.use("Agg")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for cell in cells:
            code = cell.replace('"conf/demo.yaml"', repr(str(finished_experiment.config)))
            exec(compile(code, "features.ipynb", "exec"), names)
    assert "40 clips to train on, 20 to validate on, 10 classes" in said.getvalue()
    assert "frames side by side:" in said.getvalue()
    assert len(names["shown"]) == 4
    assert 0 <= names["probe"](keep_time=True, epochs=1) <= 1
    matplotlib.pyplot.close("all")


def test_a_trial_is_loaded_by_file_folder_run_and_config(finished_experiment, best):
    uri = default_uri(finished_experiment.root)
    digests = {
        vidflow.load(best).model.trial_sha256,
        vidflow.load(best / "best.safetensors").model.trial_sha256,
        vidflow.load(run_id_of(finished_experiment, best), tracking_uri=uri).model.trial_sha256,
        vidflow.load(finished_experiment.config).model.trial_sha256,
        vidflow.load(finished_experiment.config, f"root={finished_experiment.root}").model.trial_sha256,
    }
    assert len(digests) == 1
    with pytest.raises(VidflowError, match="no such folder; wanted a config"):
        vidflow.load("runs/none")


def test_the_sampler_gives_the_order_in_which_a_trial_reads_its_clips(finished_experiment, best, tmp_path):
    class Recording(FeatureReader):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    read: list[int] = []
    reader = Recording(next(finished_experiment.root.glob("features/*/")))
    _, metadata = read_tensors(best / "best.safetensors")
    from vidflow.config.schema import Trial

    trial = Trial(**metadata["identity"]["settings"])
    results = run_trial(
        trial, reader, directory=tmp_path, key="k", objective=Objective("val/top1", "max"), device="cpu"
    )
    assert len(list(results)) == 2
    dataset = vidflow.FeatureDataset(reader.directory, "train")
    sampler = vidflow.EpochSampler(dataset, seed=trial.seed)
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        order = dataset.positions[list(sampler)].tolist()
        assert any(read[start : start + len(order)] == order for start in range(len(read)))
    assert not np.array_equal(order, dataset.positions)
