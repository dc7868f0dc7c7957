import contextlib
import json
import math
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from vidflow.store.journal import Journal
from vidflow.tracking import (
    EPOCH_SECONDS,
    MODEL,
    FeatureData,
    ModelCode,
    ModelColumns,
    RunsView,
    SweepIds,
    Tracker,
    check_store,
    fetch_file,
    find_page,
    name_run,
    name_store,
    page_of,
    ui_command,
)
from vidflow.tracking.records import EpochEnded, RunOpened, to_json

MODEL_PY = """
from vidflow.tracking import serve_model
serve_model(lambda path, settings: lambda words: [f"{path.read_text()}{settings['mark']}{word}" for word in words[0]])
"""
SECRET = "hunter2-not-to-be-seen"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as MLflow makes it; the tests copy it, because making one takes a second."""
    root = tmp_path_factory.mktemp("migrated")
    with Tracker(root, "none", uri=default_uri(root), experiment="somebody else's") as tracker:
        tracker.ids()
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


def tracker_of(uri: str, root: Path, sweep: str = "feed", experiment: str = "demo") -> Tracker:
    return Tracker(root, sweep, uri=uri, experiment=experiment)


def sweep_of(tracker: Tracker, **arguments: Any) -> str:
    tracker.open_sweep(**{"name": "s", "params": {}, "config_yaml": "", **arguments})
    return tracker.sweep


def run_sweep(uri: str, root: Path, *, num_trials: int = 3, num_epochs: int = 4) -> tuple[str, list[str]]:
    """Do what a whole sweep does, in a process of its own as far as the tracker can tell; return MLflow's ids."""
    with tracker_of(uri, root) as tracker:
        datasets = [FeatureData(name="base", identity="a1" * 8, place="/data/features/base")]
        tracker.open_sweep(name="sweep", params={"algorithm": "grid"}, config_yaml="root: x", datasets=datasets)
        for seed in range(num_trials):
            params = {"core": "gru", "seed": seed, "num_heads": None}
            trial = tracker.open_trial(f"t{seed}", name=f"seed={seed}", params=params, datasets=datasets)
            for result in epochs(num_epochs):
                tracker.log_epoch(trial, result)
            tracker.log_file(trial, b"weights", "checkpoint/best.safetensors")
            tracker.finish(trial, "FINISHED", metrics={"best/val/top1": 0.5})
        tracker.finish(tracker.sweep, "FINISHED")
        ids = tracker.ids()
    assert not tracker.problem
    return ids.run_id, [ids.trials[f"t{seed}"] for seed in range(num_trials)]


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


def test_trials_are_children_of_their_sweep(uri: str, tmp_path: Path) -> None:
    sweep, trials = run_sweep(uri, tmp_path)
    runs = {run.info.run_id: run for run in all_runs(uri)}
    assert set(runs) == {sweep, *trials}
    assert {runs[trial].data.tags["mlflow.parentRunId"] for trial in trials} == {sweep}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs[trials[1]].data.params == {"core": "gru", "seed": "1", "num_heads": "None"}
    assert runs[trials[1]].info.run_name == "seed=1"


def test_a_repeated_sweep_changes_nothing(uri: str, tmp_path: Path) -> None:
    first = run_sweep(uri, tmp_path)
    before = contents(uri)
    assert run_sweep(uri, tmp_path) == first
    assert contents(uri) == before
    for trial in first[1]:
        assert steps(uri, trial, "val/top1") == [1, 2, 3, 4]
        assert steps(uri, trial, "best/val/top1") == [0]


def test_a_killed_trial_runs_again_in_its_run_and_gets_only_the_epochs_it_lacks(uri: str, tmp_path: Path) -> None:
    with tracker_of(uri, tmp_path) as tracker:
        sweep_of(tracker)
        trial = tracker.open_trial("t", name="t", params={})
        tracker.log_epoch(trial, epochs(1)[0])
        tracker.finish(trial, "KILLED")
        before = tracker.ids()

    client = MlflowClient(uri)
    with tracker_of(uri, tmp_path) as restored:
        sweep_of(restored)
        assert restored.open_trial("t", name="t", params={}) == trial
        assert restored.ids() == before
        run = before.trials["t"]
        assert client.get_run(run).info.status == "RUNNING"
        restored.finish(trial, "FINISHED", history=epochs(5))
    assert steps(uri, run, "train/loss") == [1, 2, 3, 4, 5]
    assert [point.value for point in client.get_metric_history(run, EPOCH_SECONDS)] == [
        0.125,
        0.25,
        0.375,
        0.5,
        0.625,
    ]
    assert client.get_run(run).info.status == "FINISHED"


def test_the_same_trial_in_another_sweep_is_another_run(uri: str, tmp_path: Path) -> None:
    found = set()
    for key in ("one", "two"):
        with tracker_of(uri, tmp_path, key) as tracker:
            sweep_of(tracker)
            tracker.open_trial("same", name="t", params={})
            ids = tracker.ids()
            found |= {ids.run_id, *ids.trials.values()}
    assert len(found) == 4


def test_a_deleted_run_is_made_anew(uri: str, tmp_path: Path) -> None:
    sweep, trials = run_sweep(uri, tmp_path, num_trials=1)
    MlflowClient(uri).delete_run(trials[0])
    assert run_sweep(uri, tmp_path, num_trials=1)[0] == sweep
    runs = {run.info.run_id for run in all_runs(uri)}
    assert len(runs) == 2
    assert trials[0] not in runs


def test_settings_of_any_number_and_length_are_kept_and_never_changed(uri: str, tmp_path: Path) -> None:
    params = {f"group.{n}": "x" * (7000 if n == 0 else n) for n in range(250)}
    tags = {f"tag.{n}": str(n) for n in range(120)}
    with tracker_of(uri, tmp_path) as tracker:
        sweep_of(tracker, params=params, tags=tags)
        sweep = tracker.ids().run_id
    kept = MlflowClient(uri).get_run(sweep).data
    assert {name: len(value) for name, value in kept.params.items()} == {
        name: min(len(value), 6000) for name, value in params.items()
    }
    assert tags.items() <= kept.tags.items()

    with tracker_of(uri, tmp_path) as tracker:
        sweep_of(tracker, params={**params, "group.7": "other", "new": "1"})
    again = MlflowClient(uri).get_run(sweep).data.params
    assert again["group.7"] == "x" * 7
    assert again["new"] == "1"


def test_lineage_names_each_data_set_once(uri: str, tmp_path: Path) -> None:
    digest = "0123456789abcdef" * 4
    datasets = [
        FeatureData(name="base", identity=digest, place="/data/base", embed_dim=8, clips={"train": 3, "val": 2}),
        FeatureData(name="merged", identity="beef", place="/data/merged"),
    ]
    for _ in range(2):
        with tracker_of(uri, tmp_path) as tracker:
            sweep_of(tracker, datasets=datasets)
            sweep = tracker.ids().run_id
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
    (tmp_path / "made.png").write_bytes(b"picture")
    with tracker_of(uri, tmp_path) as tracker:
        sweep = sweep_of(tracker, config_yaml="root: x\n")
        tracker.log_file(sweep, tmp_path / "made.png", "figures/confusion.png")
        tracker.log_file(sweep, b"old", "report.html")
        tracker.log_file(sweep, b"new", "report.html")
        run = tracker.ids().run_id
    (folder,) = (tmp_path / "mlartifacts").glob(f"{run}/artifacts")
    kept = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert kept == {"figures/confusion.png": b"picture", "report.html": b"new", "config.yaml": b"root: x\n"}


def test_a_file_comes_back_from_its_run(uri: str, tmp_path: Path) -> None:
    _, trials = run_sweep(uri, tmp_path, num_trials=1)
    assert fetch_file(uri, trials[0], "checkpoint/best.safetensors", tmp_path).read_bytes() == b"weights"


def test_what_cannot_be_fetched_is_named(uri: str, tmp_path: Path) -> None:
    _, trials = run_sweep(uri, tmp_path, num_trials=1)
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
    for use in (lambda: check_store(uri, "demo"), lambda: find_page(uri, "demo", "")):
        with pytest.raises(ConfigError, match=complaint) as caught:
            use()
        assert "\n" not in str(caught.value)
    with pytest.raises(VidflowError, match=complaint.replace("use sqlite", "download x from sqlite")):
        fetch_file(uri, "f" * 32, "x", tmp_path)
    assert time.monotonic() - started < 20


def test_records_for_a_store_that_is_damaged_meanwhile_wait_until_it_is_whole(uri: str, tmp_path: Path, caplog) -> None:
    store = tmp_path / "mlflow.db"
    with tracker_of(uri, tmp_path) as tracker:
        sweep = sweep_of(tracker)
        assert tracker.ids().run_id
        whole = store.read_bytes()
        store.write_bytes(whole[:4096])
        tracker.finish(sweep, "FINISHED")
        assert tracker.ids() == SweepIds()
    assert len(list((tmp_path / "journal").rglob("*.json"))) == 1
    (said,) = [record.getMessage() for record in caplog.records]
    assert re.match(
        r"sqlite:\S+ does not store runs \(.*malformed.*\); their records wait in \S+journal/feed, and", said
    )
    store.write_bytes(whole)
    with tracker_of(uri, tmp_path) as tracker:
        run = tracker.ids().run_id
    assert MlflowClient(uri).get_run(run).info.status == "FINISHED"
    assert not list((tmp_path / "journal").rglob("*.json"))


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    check_store(default_uri(tmp_path), "demo")


def log_model(tracker: Tracker, run: str, folder: Path, **arguments: Any) -> None:
    code = ModelCode(name="model.py", script=MODEL_PY, requirements=["mlflow"], settings={"mark": " "})
    columns = ModelColumns(inputs={"path": "string"}, outputs={"path": "string", "classes": "any"})
    tracker.finish(run, "FINISHED", model=(code, folder / "weights.bin", columns), **arguments)


def models_of(uri: str, run: str) -> list[str]:
    return [output.model_id for output in MlflowClient(uri).get_run(run).outputs.model_outputs]


def test_a_model_is_kept_as_text_with_its_signature_and_loaded_by_running_it(uri: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"abc")
    with tracker_of(uri, tmp_path) as tracker:
        run = sweep_of(tracker, params={"task": "classification"})
        log_model(tracker, run, tmp_path, metrics={"best/val/top1": 0.5}, step=3)
        sweep = tracker.ids().run_id
    files = [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle")]
    # The weights are stored once.
    assert [path.name for path in files if path.read_bytes() == b"abc"] == ["weights.bin"]
    assert fetch_file(uri, sweep, f"{MODEL}/artifacts/weights.bin", tmp_path).read_bytes() == b"abc"

    (model_id,) = models_of(uri, sweep)
    logged = MlflowClient(uri).get_logged_model(model_id)
    assert (logged.status, logged.source_run_id, logged.params) == ("READY", sweep, {"task": "classification"})
    assert [(metric.key, metric.value, metric.step) for metric in logged.metrics] == [("best/val/top1", 0.5, 3)]
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model(f"runs:/{sweep}/model")
    assert model.predict(["x", "y"]) == ["abc x", "abc y"]
    assert model.metadata.signature.outputs.input_names() == ["path", "classes"]
    marked = mlflow.pyfunc.load_model(f"runs:/{sweep}/model", model_config={"mark": "-"})
    assert marked.predict(["x"]) == ["abc-x"]


def test_the_packages_of_a_model_are_known_without_the_files_that_repeat_them(uri: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"abc")
    with tracker_of(uri, tmp_path) as tracker:
        log_model(tracker, sweep_of(tracker), tmp_path)
        sweep = tracker.ids().run_id
    mlflow.set_tracking_uri(uri)
    needed = Path(mlflow.pyfunc.get_model_dependencies(f"runs:/{sweep}/model")).read_text().split()
    assert "mlflow" in needed


def test_a_run_has_one_model_even_if_its_trial_is_recorded_again(uri: str, tmp_path: Path) -> None:
    models = set()
    for process in ((b"abc", b"cde"), (b"def",)):  # a stopped trial is trained further, by the same process or another
        with tracker_of(uri, tmp_path) as tracker:
            sweep = sweep_of(tracker)
            for weights in process:
                (tmp_path / "weights.bin").write_bytes(weights)
                log_model(tracker, sweep, tmp_path)
                run = tracker.ids().run_id
                models.add(tuple(models_of(uri, run)))
    assert len(models) == 1
    assert [len(each) for each in models] == [1]
    mlflow.set_tracking_uri(uri)
    assert mlflow.pyfunc.load_model(f"runs:/{run}/model").predict(["x"]) == ["def x"]


def test_a_model_that_a_kill_left_without_a_link_is_linked_and_not_made_twice(uri: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"abc")
    with tracker_of(uri, tmp_path) as tracker:
        sweep_of(tracker)
        ids = tracker.ids()
    left = MlflowClient(uri).create_logged_model(ids.experiment_id, MODEL, ids.run_id)  # and then a kill
    with tracker_of(uri, tmp_path) as tracker:
        log_model(tracker, sweep_of(tracker), tmp_path)
    assert models_of(uri, ids.run_id) == [left.model_id]


def test_a_run_is_recorded_only_once_it_has_its_content_and_its_end(uri: str, tmp_path: Path) -> None:
    with tracker_of(uri, tmp_path) as tracker:
        sweep_of(tracker)
        trial = tracker.open_trial("t", name="t", params={})
        assert tracker.recorded() == {}
        run = tracker.ids().trials["t"]
    MlflowClient(uri).set_tag(run, "vidflow.recorded", "c0")  # a kill came before the status

    with tracker_of(uri, tmp_path) as restored:
        sweep_of(restored)
        assert restored.recorded() == {}
        restored.finish(trial, "FINISHED", content="c0")

    with tracker_of(uri, tmp_path) as again:
        sweep_of(again)
        assert again.recorded() == {"t": "c0"}


def test_a_run_that_failed_says_so_no_more_once_it_has_finished(uri: str, tmp_path: Path) -> None:
    for status, note in (("FAILED", "**Failed**: disk full"), ("FINISHED", "")):
        with tracker_of(uri, tmp_path) as tracker:
            sweep_of(tracker)
            trial = tracker.open_trial("t", name="t", params={})
            run = tracker.ids().trials["t"]
            assert MlflowClient(uri).get_run(run).info.status == "RUNNING"
            tracker.finish(trial, status, tags={"note": note, "unneeded": ""})
    found = MlflowClient(uri).get_run(run)
    assert (found.info.status, found.data.tags["note"]) == ("FINISHED", "")
    assert "unneeded" not in found.data.tags


def test_what_is_open_when_a_sweep_is_interrupted_ends_as_killed_and_starts_again(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidflow.tracking.tracker._INTERRUPTED_SECONDS", 60)  # the machine may be busy
    with contextlib.suppress(KeyboardInterrupt), tracker_of(uri, tmp_path) as tracker:
        sweep_of(tracker)
        over, _ = [tracker.open_trial(key, name=key, params={}) for key in ("over", "open")]
        tracker.finish(over, "FINISHED")
        raise KeyboardInterrupt
    assert sorted(run.info.status for run in all_runs(uri)) == ["FINISHED", "KILLED", "KILLED"]
    with tracker_of(uri, tmp_path) as tracker:
        sweep_of(tracker)
        tracker.open_trial("open", name="open", params={})
        tracker.ids()
        assert sorted(run.info.status for run in all_runs(uri)) == ["FINISHED", "RUNNING", "RUNNING"]


def test_the_page_of_a_run_is_in_a_tag_that_was_written_before_the_store_knew_the_run(uri: str, tmp_path: Path) -> None:
    with tracker_of(uri, tmp_path) as tracker:
        trial = name_run(sweep_of(tracker), "t")
        tracker.open_trial("t", name="t", params={})
        tracker.finish(tracker.sweep, "FINISHED", tags={"note": f"[best](#{page_of(trial)})"})
        ids = tracker.ids()
    tags = MlflowClient(uri).get_run(ids.run_id).data.tags
    assert tags["note"] == f"[best](#/experiments/{ids.experiment_id}/runs/{ids.trials['t']})"


def test_a_run_of_the_users_own_below_a_sweep_is_left_alone(uri: str, tmp_path: Path) -> None:
    sweep, _ = run_sweep(uri, tmp_path)
    client = MlflowClient(uri)
    own = client.create_run(client.get_run(sweep).info.experiment_id, tags={"mlflow.parentRunId": sweep})
    run_sweep(uri, tmp_path)
    assert client.get_run(own.info.run_id).info.status == "RUNNING"


def test_the_page_of_an_experiment_is_its_runs_in_the_training_view(uri: str, tmp_path: Path) -> None:
    server = "http://127.0.0.1:5000"
    assert find_page(default_uri(tmp_path / "none"), "demo", server) is None
    assert not (tmp_path / "none").exists()
    assert find_page(uri, "demo", server) is None
    with tracker_of(uri, tmp_path) as tracker:
        sweep_of(tracker)
        experiment_id = tracker.ids().experiment_id
        page = f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
        assert find_page(uri, "demo", server) == page
        view = RunsView(metric="best/val/top1", curve="val/top1", mode="max", params=("core", "seed"))
        sweep_of(tracker, view=view)
    assert find_page(uri, "demo", server) == f"{page}&viewStateShareKey=vidflow"
    tags = MlflowClient(uri).get_experiment(experiment_id).tags
    state = json.loads(tags["mlflow.sharedViewState.vidflow"])
    assert state["selectedColumns"] == ["metrics.`best/val/top1`", "params.`core`", "params.`seed`"]
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_diverged_epoch_is_logged_as_it_is(uri: str, tmp_path: Path) -> None:
    with tracker_of(uri, tmp_path) as tracker:
        sweep = sweep_of(tracker)
        tracker.log_epoch(sweep, EpochResult(epoch=1, metrics={"train/loss": math.nan, "val/top1": 0.5}))
        run = tracker.ids().run_id
    metrics = MlflowClient(uri).get_run(run).data.metrics
    assert math.isnan(metrics["train/loss"])
    assert metrics["val/top1"] == 0.5


def test_no_secret_reaches_the_store_or_the_journal(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    address = f"https://me:{SECRET}@host/x?token={SECRET}"
    for store in (f"http://me:{SECRET}@127.0.0.1:9", uri):
        with tracker_of(store, tmp_path, "away" if store != uri else "feed") as tracker:
            sweep_of(
                tracker,
                name=address,
                params={"manifest": address},
                tags={"from": address},
                config_yaml=f"tracking:\n  uri: {address}\n",
                datasets=[FeatureData(name="base", identity="beef", place=address)],
            )
            tracker.finish(tracker.sweep, "FINISHED", tags={"error": address})
            run = tracker.ids().run_id
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if "journal" in path.parts]) == 2
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in caplog.text
    assert "http://127.0.0.1:9 does not store runs" in caplog.text
    assert MlflowClient(uri).get_run(run).data.params["manifest"] == "https://host/x?token=***"


def test_the_ui_of_a_server_is_at_the_server() -> None:
    with pytest.raises(ConfigError, match="open that address"):
        ui_command("http://u:pw@host:5000")


def test_a_deleted_experiment_is_refused_with_what_to_do(uri: str, tmp_path: Path) -> None:
    with tracker_of(uri, tmp_path) as tracker:
        experiment_id = tracker.ids().experiment_id
    MlflowClient(uri).delete_experiment(experiment_id)
    with pytest.raises(ConfigError, match="'demo' was deleted"):
        check_store(uri, "demo")


def test_a_store_of_another_version_is_refused_with_what_to_do(tmp_path: Path, uri: str) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(ConfigError, match=r"tracking.uri: cannot use sqlite.*mlflow db upgrade"):
        check_store(uri, "demo")


def test_a_key_that_could_break_the_search_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted letters"):
        tracker_of(uri, tmp_path, "x' or 1=1")


def test_making_a_store_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with tracker_of(default_uri(tmp_path / "new"), tmp_path) as tracker:
        tracker.finish(sweep_of(tracker), "FINISHED")
    assert (tmp_path / "new" / "mlflow.db").exists()
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def server(uri: str) -> Iterator[Server]:
    with serve(uri) as started:
        yield started


@pytest.mark.slow
def test_a_server_shows_the_store_and_is_itself_a_store(uri: str, server: Server, tmp_path: Path) -> None:
    sweep, trials = run_sweep(uri, tmp_path)
    address = f"http://localhost:{server.port}"
    client = MlflowClient(address)
    assert {run.info.run_id for run in all_runs(address)} == {sweep, *trials}
    assert [entry.path for entry in client.list_artifacts(trials[0], "checkpoint")] == ["checkpoint/best.safetensors"]
    fetched = client.download_artifacts(trials[0], "checkpoint/best.safetensors", str(tmp_path))
    assert Path(fetched).read_bytes() == b"weights"

    before = contents(uri)
    assert run_sweep(address, tmp_path) == (sweep, trials)
    assert contents(uri) == before

    with tracker_of(address, tmp_path, experiment="made through the server") as tracker:
        sweep_of(tracker, config_yaml="root: y\n")
        other = tracker.ids().run_id
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


def test_a_server_that_does_not_answer_is_refused_within_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        uri = f"http://u:pw@127.0.0.1:{deaf.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ConfigError, match=r"tracking\.uri: cannot use http://127\.0\.0\.1:\d+: "):
            check_store(uri, "demo")
        assert time.monotonic() - started < 8


def test_a_record_of_another_version_is_set_aside_and_the_others_are_sent(uri: str, tmp_path: Path, caplog) -> None:
    strange = Journal(tmp_path, "feed", name_store(uri, "demo", tmp_path)).append({"kind": "RunOpened", "word": 1})
    with tracker_of(uri, tmp_path) as tracker:
        sweep_of(tracker)
        assert tracker.ids().run_id
    assert "not a record of this version of vidflow; it is set aside as 00000000.json.damaged" in caplog.text
    assert strange.with_name("00000000.json.damaged").exists()


def test_a_failure_between_the_start_of_a_trial_and_its_first_epoch_costs_no_setting(uri: str, tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    with tracker_of(uri, tmp_path) as tracker:
        sweep_of(tracker)
        trial = tracker.open_trial("t", name="t", params={"core": "gru"})
        run = tracker.ids().trials["t"]
        whole = store.read_bytes()
        store.write_bytes(whole[:4096])
        tracker.log_epoch(trial, epochs(1)[0])
        assert tracker.ids() == SweepIds()
        store.write_bytes(whole)
        tracker.finish(trial, "FINISHED", history=epochs(2))
    found = MlflowClient(uri).get_run(run)
    assert (found.info.status, found.data.params) == ("FINISHED", {"core": "gru"})
    assert steps(uri, run, "val/top1") == [1, 2]


def test_epochs_that_had_to_wait_are_written_together(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    write = MlflowClient.log_batch
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *given, **more: (batches.append(1), write(*given, **more)))
    journal = Journal(tmp_path, "feed", name_store(uri, "demo", tmp_path))
    journal.append(to_json(RunOpened(run="feed", time=1, title="s", params={})))
    for key in ("t0", "t1"):
        journal.append(to_json(RunOpened(run=f"feed/{key}", time=1, title=key, params={"core": "gru"})))
    for epoch in range(1, 6):
        for key in ("t0", "t1"):
            waiting = EpochEnded(run=f"feed/{key}", time=epoch, epoch=epoch, metrics={"val/top1": 0.5}, seconds=1.0)
            journal.append(to_json(waiting))
    with tracker_of(uri, tmp_path) as tracker:
        ids = tracker.ids()
    for run in ids.trials.values():
        assert sorted(steps(uri, run, "val/top1")) == [1, 2, 3, 4, 5]
        assert MlflowClient(uri).get_run(run).data.params == {"core": "gru"}
    assert len(batches) == 2
