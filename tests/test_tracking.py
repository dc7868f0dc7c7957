import json
import math
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import mlflow.pyfunc
import pytest
from mlflow import MlflowClient
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Run
from mlflow_server import Server, serve

from vidflow.config.tracking_uri import default_uri
from vidflow.errors import ConfigError, VidflowError
from vidflow.records import EpochResult
from vidflow.tracking import (
    EPOCH_SECONDS,
    MODEL,
    FeatureData,
    ModelCode,
    ModelColumns,
    RunsView,
    Tracker,
    check_store,
    explain_failures,
    fetch_file,
    find_page,
    ui_command,
)

MODEL_PY = """
from vidflow.tracking import serve_model
serve_model(lambda path, settings: lambda words: [f"{path.read_text()}{settings['mark']}{word}" for word in words[0]])
"""
SECRET = "hunter2-not-to-be-seen"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as MLflow makes it; the tests copy it, because making one takes a second."""
    root = tmp_path_factory.mktemp("migrated")
    Tracker(default_uri(root), "somebody else's")
    return root / "mlflow.db"


@pytest.fixture
def uri(migrated: Path, tmp_path: Path) -> str:
    shutil.copyfile(migrated, tmp_path / "mlflow.db")
    return default_uri(tmp_path)


def epochs(count: int) -> list[EpochResult]:
    return [
        EpochResult(epoch=n, metrics={"train/loss": 1 / n, "val/top1": 1 - 0.5**n}, seconds=n / 8, is_best=True)
        for n in range(1, count + 1)
    ]


def run_sweep(uri: str, *, num_trials: int = 3, num_epochs: int = 4) -> tuple[str, list[str]]:
    """Do what a whole sweep does, in a process of its own as far as the tracker can tell."""
    tracker = Tracker(uri, "demo")
    datasets = [FeatureData(name="base", identity="a1" * 8, place="/data/features/base")]
    sweep = tracker.sweep_run(
        "feed", name="sweep", params={"algorithm": "grid"}, config_yaml="root: x", datasets=datasets
    )
    trials = []
    for seed in range(num_trials):
        params = {"core": "gru", "seed": seed, "num_heads": None}
        trials.append(tracker.trial_run(sweep, f"t{seed}", name=f"seed={seed}", params=params, datasets=datasets))
        for result in epochs(num_epochs):
            tracker.log_epoch(trials[-1], result)
        tracker.log_file(trials[-1], b"weights", "checkpoint/best.safetensors")
        tracker.finish(trials[-1], "FINISHED", metrics={"best/val/top1": 0.5})
    tracker.finish(sweep, "FINISHED")
    return sweep, trials


def all_runs(uri: str, experiment: str = "demo") -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def steps(uri: str, run_id: str, metric: str) -> list[int]:
    return [point.step for point in MlflowClient(uri).get_metric_history(run_id, metric)]


def contents(uri: str) -> list[tuple[str, str, dict[str, str], dict[str, float], int | None]]:
    return sorted(
        (run.info.run_id, run.info.status, run.data.params, run.data.metrics, run.info.end_time)
        for run in all_runs(uri)
    )


def test_trials_are_children_of_their_sweep(uri: str) -> None:
    sweep, trials = run_sweep(uri)
    runs = {run.info.run_id: run for run in all_runs(uri)}
    assert set(runs) == {sweep, *trials}
    assert {runs[trial].data.tags["mlflow.parentRunId"] for trial in trials} == {sweep}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs[trials[1]].data.params == {"core": "gru", "seed": "1", "num_heads": "None"}
    assert runs[trials[1]].info.run_name == "seed=1"


def test_a_repeated_sweep_changes_nothing(uri: str) -> None:
    first = run_sweep(uri)
    before = contents(uri)
    assert run_sweep(uri) == first
    assert contents(uri) == before
    for trial in first[1]:
        assert steps(uri, trial, "val/top1") == [1, 2, 3, 4]
        assert steps(uri, trial, "best/val/top1") == [0]


def test_a_killed_trial_runs_again_in_its_run_and_gets_only_the_epochs_it_lacks(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    sweep = tracker.sweep_run("feed", name="sweep", params={}, config_yaml="")
    trial = tracker.trial_run(sweep, "t", name="t", params={})
    tracker.log_epoch(trial, epochs(1)[0])
    tracker.finish(trial, "KILLED")

    restored = Tracker(uri, "demo")
    assert restored.sweep_run("feed", name="sweep", params={}, config_yaml="") == sweep
    assert restored.trial_run(sweep, "t", name="t", params={}) == trial
    client = MlflowClient(uri)
    assert client.get_run(trial).info.status == "RUNNING"
    restored.log_history(trial, epochs(5))
    assert steps(uri, trial, "train/loss") == [1, 2, 3, 4, 5]
    assert [point.value for point in client.get_metric_history(trial, EPOCH_SECONDS)] == [
        0.125,
        0.25,
        0.375,
        0.5,
        0.625,
    ]
    restored.finish(trial, "FINISHED")
    assert client.get_run(trial).info.status == "FINISHED"


def test_the_same_trial_in_another_sweep_is_another_run(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    sweeps = [tracker.sweep_run(key, name=key, params={}, config_yaml="") for key in ("one", "two")]
    trials = [tracker.trial_run(sweep, "same", name="t", params={}) for sweep in sweeps]
    assert len({*sweeps, *trials}) == 4


def test_a_deleted_run_is_made_anew(uri: str) -> None:
    sweep, trials = run_sweep(uri, num_trials=1)
    MlflowClient(uri).delete_run(trials[0])
    assert run_sweep(uri, num_trials=1)[0] == sweep
    runs = {run.info.run_id for run in all_runs(uri)}
    assert len(runs) == 2
    assert trials[0] not in runs


def test_settings_of_any_number_and_length_are_kept_and_never_changed(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    params = {f"group.{n}": "x" * (7000 if n == 0 else n) for n in range(250)}
    tags = {f"tag.{n}": str(n) for n in range(120)}
    sweep = tracker.sweep_run("feed", name="s", params=params, tags=tags, config_yaml="")
    kept = MlflowClient(uri).get_run(sweep).data
    assert {name: len(value) for name, value in kept.params.items()} == {
        name: min(len(value), 6000) for name, value in params.items()
    }
    assert tags.items() <= kept.tags.items()

    changed = {**params, "group.7": "other", "new": "1"}
    Tracker(uri, "demo").sweep_run("feed", name="s", params=changed, config_yaml="")
    again = MlflowClient(uri).get_run(sweep).data.params
    assert again["group.7"] == "x" * 7
    assert again["new"] == "1"


def test_lineage_names_each_data_set_once(uri: str) -> None:
    digest = "0123456789abcdef" * 4
    for _ in range(2):
        tracker = Tracker(uri, "demo")
        datasets = [
            FeatureData(name="base", identity=digest, place="/data/base", embed_dim=8, clips={"train": 3, "val": 2}),
            FeatureData(name="merged", identity="beef", place="/data/merged"),
        ]
        sweep = tracker.sweep_run("feed", name="s", params={}, config_yaml="", datasets=datasets)
    inputs = [entry.dataset for entry in MlflowClient(uri).get_run(sweep).inputs.dataset_inputs]
    assert sorted((entry.name, entry.digest, entry.source) for entry in inputs) == [
        ("base", digest[:36], '{"uri": "/data/base"}'),
        ("merged", "beef", '{"uri": "/data/merged"}'),
    ]
    (base,) = (entry for entry in inputs if entry.name == "base")
    assert json.loads(base.profile)["num_clips_train"] == 3
    schema = TensorDatasetSchema.from_dict(json.loads(base.schema))
    assert schema.features.input_dict()["tokens"].shape == (-1, 8)


def test_files_and_bytes_lie_under_their_path_beside_the_store(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, "demo")
    sweep = tracker.sweep_run("feed", name="s", params={}, config_yaml="root: x\n")
    (tmp_path / "made.png").write_bytes(b"picture")
    tracker.log_file(sweep, tmp_path / "made.png", "figures/confusion.png")
    tracker.log_file(sweep, b"old", "report.html")
    tracker.log_file(sweep, b"new", "report.html")
    (folder,) = (tmp_path / "mlartifacts").glob(f"{sweep}/artifacts")
    kept = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert kept == {"figures/confusion.png": b"picture", "report.html": b"new", "config.yaml": b"root: x\n"}


def test_a_file_comes_back_from_its_run(uri: str, tmp_path: Path) -> None:
    _, trials = run_sweep(uri, num_trials=1)
    assert fetch_file(uri, trials[0], "checkpoint/best.safetensors", tmp_path).read_bytes() == b"weights"


def test_what_cannot_be_fetched_is_named(uri: str, tmp_path: Path) -> None:
    _, trials = run_sweep(uri, num_trials=1)
    for run_id, path in ((trials[0], "checkpoint/other"), ("f" * 32, "checkpoint/best.safetensors")):
        with pytest.raises(VidflowError, match=f"run {run_id}: cannot download {path} from sqlite:"):
            fetch_file(uri, run_id, path, tmp_path)
    with pytest.raises(VidflowError, match=r"gone\.db: no such file"):
        fetch_file(f"sqlite:///{tmp_path}/gone.db", trials[0], "x", tmp_path)
    assert not (tmp_path / "gone.db").exists()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BAD_STORES = {
    "garbage": (lambda path: path.write_bytes(b"no database" * 1000), "is damaged or not a sqlite database"),
    "folder": (_folder, "is a folder, pipe or device"),
    "pipe": (_pipe, "is a folder, pipe or device"),
    "header alone": (lambda path: path.write_bytes(path.read_bytes()[:100] + b"x" * 9000), "cannot use sqlite"),
}


@pytest.mark.parametrize("kind", BAD_STORES)
def test_a_damaged_sqlite_store_is_a_sentence_within_seconds(uri: str, tmp_path: Path, kind: str) -> None:
    harm, complaint = BAD_STORES[kind]
    harm(tmp_path / "mlflow.db")
    started = time.monotonic()
    for use in (lambda: check_store(uri), lambda: Tracker(uri, "demo")):
        with pytest.raises(ConfigError, match=complaint) as caught:
            use()
        assert "\n" not in str(caught.value)
    with pytest.raises(VidflowError, match=complaint.replace("use sqlite", "download x from sqlite")):
        fetch_file(uri, "f" * 32, "x", tmp_path)
    assert time.monotonic() - started < 20


def test_a_sqlite_store_that_is_damaged_while_it_is_written_is_a_sentence(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, "demo")
    sweep = tracker.sweep_run("feed", name="s", params={}, config_yaml="")
    with (tmp_path / "mlflow.db").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(VidflowError, match="the runs cannot be stored by sqlite"), explain_failures(uri):
        tracker.finish(sweep, "FINISHED")


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    check_store(default_uri(tmp_path))


def log_model(tracker: Tracker, run: str, folder: Path) -> str:
    (folder / "model.py").write_text(MODEL_PY)
    code = ModelCode(script=folder / "model.py", requirements=["mlflow"], settings={"mark": " "})
    columns = ModelColumns(inputs={"path": "string"}, outputs={"path": "string", "classes": "any"})
    return tracker.log_model(run, code=code, file=folder / "weights.bin", columns=columns)


def test_a_model_is_kept_as_text_with_its_signature_and_loaded_by_running_it(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, "demo")
    sweep = tracker.sweep_run("feed", name="s", params={"task": "classification"}, config_yaml="")
    (tmp_path / "weights.bin").write_bytes(b"abc")
    model_id = log_model(tracker, sweep, tmp_path)
    tracker.finish(sweep, "FINISHED", metrics={"best/val/top1": 0.5}, step=3, model_id=model_id)
    files = [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle")]
    # The weights are stored once.
    assert [path.name for path in files if path.read_bytes() == b"abc"] == ["weights.bin"]
    assert fetch_file(uri, sweep, f"{MODEL}/artifacts/weights.bin", tmp_path).read_bytes() == b"abc"

    logged = MlflowClient(uri).get_logged_model(model_id)
    assert (logged.status, logged.source_run_id, logged.params) == ("READY", sweep, {"task": "classification"})
    assert [(metric.key, metric.value, metric.step) for metric in logged.metrics] == [("best/val/top1", 0.5, 3)]
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model(f"runs:/{sweep}/model")
    assert model.predict(["x", "y"]) == ["abc x", "abc y"]
    assert model.metadata.signature.outputs.input_names() == ["path", "classes"]
    marked = mlflow.pyfunc.load_model(f"runs:/{sweep}/model", model_config={"mark": "-"})
    assert marked.predict(["x"]) == ["abc-x"]


def test_a_run_has_one_model_even_if_its_trial_is_recorded_again(uri: str, tmp_path: Path) -> None:
    models = set()
    for weights in (b"abc", b"cde", b"def"):
        if weights != b"cde":  # which is recorded by the same process, such as when a stopped trial is trained further
            tracker = Tracker(uri, "demo")
            sweep = tracker.sweep_run("feed", name="s", params={}, config_yaml="")
        (tmp_path / "weights.bin").write_bytes(weights)
        models.add(log_model(tracker, sweep, tmp_path))
    assert len(models) == 1
    assert len(MlflowClient(uri).get_run(sweep).outputs.model_outputs) == 1
    mlflow.set_tracking_uri(uri)
    assert mlflow.pyfunc.load_model(f"runs:/{sweep}/model").predict(["x"]) == ["def x"]


def test_a_model_that_a_kill_left_without_a_link_is_linked_and_not_made_twice(uri: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"abc")
    tracker = Tracker(uri, "demo")
    sweep = tracker.sweep_run("feed", name="s", params={}, config_yaml="")
    client = MlflowClient(uri)
    left = client.create_logged_model(tracker.experiment_id, MODEL, sweep)  # and then the process was killed
    restored = Tracker(uri, "demo")
    restored.sweep_run("feed", name="s", params={}, config_yaml="")
    assert log_model(restored, sweep, tmp_path) == left.model_id
    assert [output.model_id for output in client.get_run(sweep).outputs.model_outputs] == [left.model_id]


def test_a_run_is_recorded_only_once_it_has_its_content_and_its_end(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    sweep = tracker.sweep_run("feed", name="s", params={}, config_yaml="")
    trial = tracker.trial_run(sweep, "t", name="t", params={})
    assert not tracker.is_recorded(trial, "c0")
    MlflowClient(uri).set_tag(trial, "vidflow.recorded", "c0")  # a kill came before the status

    restored = Tracker(uri, "demo")
    restored.sweep_run("feed", name="s", params={}, config_yaml="")
    assert restored.trial_run(sweep, "t", name="t", params={}) == trial
    assert not restored.is_recorded(trial, "c0")
    restored.finish(trial, "FINISHED", content="c0")

    again = Tracker(uri, "demo")
    again.sweep_run("feed", name="s", params={}, config_yaml="")
    again.trial_run(sweep, "t", name="t", params={})
    assert again.is_recorded(trial, "c0")
    assert not again.is_recorded(trial, "c1")  # the trial was trained on since


def test_a_run_that_failed_says_so_no_more_once_it_has_finished(uri: str) -> None:
    for status, note in (("FAILED", "**Failed**: disk full"), ("FINISHED", "")):
        tracker = Tracker(uri, "demo")
        sweep = tracker.sweep_run("feed", name="s", params={}, config_yaml="")
        trial = tracker.trial_run(sweep, "t", name="t", params={})
        assert MlflowClient(uri).get_run(trial).info.status == "RUNNING"
        tracker.finish(trial, status, tags={"note": note, "unneeded": ""})
    run = MlflowClient(uri).get_run(trial)
    assert (run.info.status, run.data.tags["note"]) == ("FINISHED", "")
    assert "unneeded" not in run.data.tags


def test_a_run_of_the_users_own_below_a_sweep_is_left_alone(uri: str) -> None:
    sweep, _ = run_sweep(uri)
    client = MlflowClient(uri)
    own = client.create_run(client.get_run(sweep).info.experiment_id, tags={"mlflow.parentRunId": sweep})
    run_sweep(uri)
    assert client.get_run(own.info.run_id).info.status == "RUNNING"


def test_the_page_of_an_experiment_is_its_runs_in_the_training_view(uri: str, tmp_path: Path) -> None:
    server = "http://127.0.0.1:5000"
    assert find_page(default_uri(tmp_path / "none"), "demo", server) is None
    assert not (tmp_path / "none").exists()
    assert find_page(uri, "demo", server) is None
    tracker = Tracker(uri, "demo")
    page = f"{server}/#/experiments/{tracker.experiment_id}/runs?workflowType=machine_learning"
    assert find_page(uri, "demo", server) == page
    tracker.show_first(RunsView(metric="best/val/top1", curve="val/top1", mode="max", params=("core", "seed")))
    assert find_page(uri, "demo", server) == f"{page}&viewStateShareKey=vidflow"
    tags = MlflowClient(uri).get_experiment(tracker.experiment_id).tags
    state = json.loads(tags["mlflow.sharedViewState.vidflow"])
    assert state["selectedColumns"] == ["metrics.`best/val/top1`", "params.`core`", "params.`seed`"]
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_diverged_epoch_is_logged_as_it_is(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    sweep = tracker.sweep_run("feed", name="s", params={}, config_yaml="")
    tracker.log_epoch(sweep, EpochResult(epoch=1, metrics={"train/loss": math.nan, "val/top1": 0.5}))
    metrics = MlflowClient(uri).get_run(sweep).data.metrics
    assert math.isnan(metrics["train/loss"])
    assert metrics["val/top1"] == 0.5


def test_no_secret_reaches_the_store(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    address = f"https://me:{SECRET}@host/x?token={SECRET}"
    tracker = Tracker(uri, "demo")
    sweep = tracker.sweep_run(
        "feed",
        name=address,
        params={"manifest": address},
        tags={"from": address},
        config_yaml=f"tracking:\n  uri: {address}\n",
        datasets=[FeatureData(name="base", identity="beef", place=address)],
    )
    tracker.finish(sweep, "FINISHED")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert MlflowClient(uri).get_run(sweep).data.params["manifest"] == "https://host/x?token=***"


def test_the_ui_of_a_server_is_at_the_server() -> None:
    with pytest.raises(ConfigError, match="open that address"):
        ui_command("http://u:pw@host:5000")


def test_a_deleted_experiment_is_refused_with_what_to_do(uri: str) -> None:
    Tracker(uri, "demo")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(ConfigError, match="'demo' was deleted"):
        Tracker(uri, "demo")


def test_a_store_of_another_version_is_refused_with_what_to_do(tmp_path: Path, uri: str) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(ConfigError, match=r"tracking.uri: cannot use sqlite.*mlflow db upgrade"):
        Tracker(uri, "demo")


def test_a_key_that_could_break_the_search_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="wanted letters"):
        Tracker(uri, "demo").sweep_run("x' or 1=1", name="s", params={}, config_yaml="")


def test_making_a_store_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(default_uri(tmp_path / "new"), "demo")
    tracker.finish(tracker.sweep_run("feed", name="s", params={}, config_yaml=""), "FINISHED")
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def server(uri: str) -> Iterator[Server]:
    with serve(uri) as started:
        yield started


@pytest.mark.slow
def test_a_server_shows_the_store_and_is_itself_a_store(uri: str, server: Server, tmp_path: Path) -> None:
    sweep, trials = run_sweep(uri)
    address = f"http://localhost:{server.port}"
    client = MlflowClient(address)
    assert {run.info.run_id for run in all_runs(address)} == {sweep, *trials}
    assert [entry.path for entry in client.list_artifacts(trials[0], "checkpoint")] == ["checkpoint/best.safetensors"]
    fetched = client.download_artifacts(trials[0], "checkpoint/best.safetensors", str(tmp_path))
    assert Path(fetched).read_bytes() == b"weights"

    before = contents(uri)
    assert run_sweep(address) == (sweep, trials)
    assert contents(uri) == before

    tracker = Tracker(address, "made through the server")
    other = tracker.sweep_run("feed", name="s", params={}, config_yaml="root: y\n")
    assert [entry.path for entry in client.list_artifacts(other)] == ["config.yaml"]
    assert (tmp_path / "mlartifacts").is_dir()


@pytest.mark.slow
def test_the_ui_answers_this_machine_and_no_foreign_page(server: Server) -> None:
    for host in ("127.0.0.1", "localhost"):
        with urllib.request.urlopen(f"http://{host}:{server.port}/", timeout=30) as page:
            assert b"<html" in page.read()
    foreign = urllib.request.Request(f"http://127.0.0.1:{server.port}/", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(foreign, timeout=30)
    assert caught.value.code == 403
    caught.value.close()


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_given_up_within_half_a_minute() -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"tracking\.uri: cannot use http://127\.0\.0\.1:9"):
        Tracker("http://u:pw@127.0.0.1:9", "demo")
    assert time.monotonic() - started < 30  # two retries with a back-off of seconds; MLflow's default is minutes
