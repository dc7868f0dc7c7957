"""The report's files and `vidflow compare`, on a finished experiment."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from vidflow.stages.finish import address_of, publish_manifest, read_manifest


@pytest.fixture(scope="module")
def finished(finished_experiment):
    return finished_experiment.config, finished_experiment.root


def test_the_report_says_which_trial_is_best_and_how_to_use_it(finished, finished_experiment):
    config, root = finished
    page = next(root.glob("reports/*/report.html"))
    rows = list(csv.DictReader((page.parent / "trials.csv").open()))
    best = rows[0]
    run = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}").get_run(best["mlflow_run"])
    assert run.data.params["core"] == best["setting.core"]
    text, command = page.read_text(), f"vidflow predict {best['mlflow_run']} VIDEO --tracking-uri sqlite:///"
    for words in (best["trial"], best["mlflow_run"], command, f"vidflow ui {config}", 'href="trials.tex"'):
        assert words in text
    assert command in finished_experiment.said
    assert r"\toprule" in (page.parent / "trials.tex").read_text()
    assert "Where the best trial reads its answer" in text
    assert "val_0000" in text  # clips have the names of their videos


def test_a_sweep_that_is_named_by_its_folder_and_by_its_config_is_shown_once(finished_experiment, here, tmp_path):
    config, root = finished_experiment.config, finished_experiment.root
    (sweep,) = root.glob("sweeps/*")
    page = tmp_path / "pages" / "all.html"
    done = here("compare", sweep, config, "--to", page)
    assert done.returncode == 0, done.stderr
    assert f"compare: 1 sweep -> {page}" in done.stderr
    text = page.read_text()
    assert "1 sweep compared" in text
    (link,) = {word.split('"')[0] for word in text.split('href="')[1:] if "report.html" in word}
    assert (page.parent / link).resolve() in {report.resolve() for report in root.glob("reports/*/report.html")}


def test_two_sweeps_stand_side_by_side_with_their_scores(finished, here, tmp_path):
    _, root = finished
    other = tmp_path / "other"
    shutil.copytree(root, other)
    page = tmp_path / "all.html"
    assert here("compare", root, other, "--to", page).returncode == 0
    text = page.read_text()
    assert "2 sweeps compared" in text
    assert "All sweeps used the same clips in the same splits." in text
    assert text.count("vidflow predict") == 2
    shutil.rmtree(other / "features")
    assert here("compare", root, other, "--to", page).returncode == 0
    assert "it is not known whether the clips are the same" in page.read_text()


def test_features_with_clips_left_out_for_now_are_found(finished, here, tmp_path):
    other, page = tmp_path / "other", tmp_path / "all.html"
    shutil.copytree(finished[1], other)
    (features,), (sweep,) = other.glob("features/*/"), other.glob("sweeps/*/")
    made = replace(read_manifest(features), edition="retry")
    publish_manifest(address_of(features, made), made)
    swept = read_manifest(sweep)
    settings = {**swept.settings, "features": {"base": address_of(features, made).identity}}
    publish_manifest(address_of(sweep, swept), replace(swept, settings=settings))
    assert here("compare", other, "--to", page).returncode == 0
    assert "it is not known whether the clips are the same" not in page.read_text()


def test_all_words_that_name_no_sweep_are_refused_at_once(finished, here, tmp_path):
    config, root = finished
    done = here("compare", tmp_path, config, f"root={tmp_path / 'none'}", root, "--to", tmp_path / "x.html")
    assert done.returncode == 2
    assert f"{tmp_path}: no finished sweep here" in done.stderr
    assert f"{config}: its sweep is not finished; run `vidflow run" in done.stderr
    assert not (tmp_path / "x.html").exists()
    done = here("compare", root, "--to", tmp_path / "x.txt")
    assert done.returncode == 2
    assert "wanted a name that ends in .html" in done.stderr


def test_a_page_that_cannot_be_written_is_said_in_one_line(finished, here, tmp_path):
    (tmp_path / "file").write_text("")
    done = here("compare", finished[1], "--to", tmp_path / "file" / "x.html")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


@pytest.mark.parametrize("name", ["report.html", "trials.csv", "trials.tex"])
def test_the_report_and_its_tables_are_in_the_parent_run(finished, name):
    root: Path = finished[1]
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    manifest = json.loads(next(root.glob("sweeps/*/manifest.json")).read_text())
    assert name in {file.path for file in client.list_artifacts(manifest["details"]["run_id"])}
