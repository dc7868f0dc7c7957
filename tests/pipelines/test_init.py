"""`vidflow init`: from a folder or a manifest to a YAML that runs."""

import copy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from pipelines.commands import PRESETS
from vidflow.config.load import load_config
from vidflow.video.manifest import read_manifest, write_manifest
from vidflow.video.synthetic import list_videos, video_path, write_video

ROOT = Path(__file__).parents[2]
RENDERING = {
    "size": 32,
    "num_frames": 8,
    "fps": 8,
    "difficulty": 0.0,
    "camera_travel": 0.5,
    "camera_turn": 4.0,
    "annotations": True,
}
SMALL = {
    "encoder": {"name": "test_vit", "weights": "random:0", "img_size": 32},
    "video": {"size": 32, "sampling": {"num_frames": 4}},
    "trials": {"trial": {"epochs": 1, "num_layers": 1, "num_heads": 2, "readout_dim": 32, "readout_heads": 2}},
}


FIRST, *OTHERS = PRESETS


@pytest.fixture
def folder(tmp_path):
    """Two classes of three videos each, with annotations, as far as names tell."""
    for label in ("cat", "dog"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "clips" / label / f"{number}.mp4").write_bytes(b"")
            (tmp_path / "clips" / label / f"{number}.npz").write_bytes(b"")
    return tmp_path / "clips"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["init", *map(str, arguments)])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


@pytest.mark.parametrize("preset", [FIRST, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_a_folder_of_classes_becomes_a_config_that_run_accepts(vidflow, folder, tmp_path, preset):
    made = vidflow("init", folder, "--preset", preset, "--output", tmp_path / "mine.yaml")
    assert made.returncode == 0, made.stderr
    assert "6 videos (2 val, 4 train), 2 classes, 6 with annotations." in made.stdout
    done = vidflow("run", tmp_path / "mine.yaml", "encoder.weights=random:0", f"root={tmp_path / 'root'}", "--print")
    assert done.returncode == 0, done.stderr
    assert f"manifest: {tmp_path / 'mine.csv'}" in done.stdout


@pytest.mark.parametrize(("preset", "file"), PRESETS.items())
def test_what_is_written_is_the_preset_on_other_videos(capsys, folder, tmp_path, preset, file):
    assert run(capsys, folder, "--preset", preset, "--output", tmp_path / "mine.yaml")[0] == 0
    given = yaml.safe_load((ROOT / "conf" / file).read_text())
    made = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert made["root"] == "runs/mine"
    assert made["video"].pop("manifest") == str(tmp_path / "mine.csv")
    for key in ("synthetic", "manifest"):
        given["video"].pop(key, None)
    for section in ("video", "encoder", "features", "trials"):
        assert made[section] == given[section]
    comments = [line for line in (tmp_path / "mine.yaml").read_text().splitlines() if line.lstrip().startswith("#")]
    assert any("Peak learning rate of AdamW" in line for line in comments)
    assert max(map(len, comments)) <= 112


def test_a_manifest_is_pointed_at_and_left_alone(capsys, folder, tmp_path):
    manifest = tmp_path / "rows.jsonl"
    run(capsys, folder, "--output", tmp_path / "first.yaml")
    write_manifest(manifest, read_manifest(tmp_path / "first.csv")[0])
    before = manifest.read_bytes()
    code, _, _ = run(capsys, manifest, "--output", tmp_path / "second.yaml")
    assert code == 0
    assert load_config([tmp_path / "second.yaml"]).video.manifest == str(manifest)
    assert manifest.read_bytes() == before
    assert not (tmp_path / "second.csv").exists()


def test_videos_elsewhere_are_allowed_by_the_config(capsys, folder, tmp_path):
    (tmp_path / "here").mkdir()
    assert run(capsys, folder, "--output", tmp_path / "here" / "mine.yaml")[0] == 0
    config = load_config([tmp_path / "here" / "mine.yaml"])
    items, rejects = read_manifest(Path(config.video.manifest), video_root=Path(config.video.video_root))
    assert (len(items), rejects) == (6, [])


def test_nothing_is_overwritten(capsys, folder, tmp_path):
    for name in ("mine.yaml", "mine.csv"):
        (tmp_path / name).write_text("mine")
        code, _, err = run(capsys, folder, "--output", tmp_path / "mine.yaml")
        assert code == 2
        assert f"{name}: exists already" in err
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        ("*.npz", ["--preset", "tasks"], "have no annotations"),
        ("dog/*.*", [], "only one label, 'cat'"),
        ("*/*.mp4", [], "no videos"),
        ("none", ["--output", "mine.txt"], "wanted FILE.yaml"),
        ("none", ["--output", "no/such/mine.yaml"], "in a folder that exists"),
    ],
)
def test_what_would_not_run_is_refused_and_leaves_nothing(
    capsys, monkeypatch, folder, tmp_path, spoil, arguments, message
):
    for path in folder.rglob(spoil):
        path.unlink()
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, folder, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


def test_a_flat_folder_with_annotations_gets_the_tasks_that_need_no_labels(capsys, folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.rglob("*.*"):
        path.rename(flat / f"{path.parent.name}_{path.name}")
    code, _, err = run(capsys, flat, "--output", tmp_path / "mine.yaml")
    assert code == 2
    assert "have no label" in err
    assert run(capsys, flat, "--preset", "tasks", "--output", tmp_path / "mine.yaml")[0] == 0
    axes = load_config([tmp_path / "mine.yaml"]).trials.axes
    assert axes["task"] == ["depth", "point_tracking", "box_tracking", "camera_pose"]


@pytest.mark.slow
def test_a_wheel_holds_the_presets(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("vidflow", "pipelines", "conf"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", tmp_path, source]
    subprocess.run([sys.executable, "-m", *build], check=True)
    held = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {f"pipelines/presets/{file}" for file in PRESETS.values()} <= set(held)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_runs_to_the_end(vidflow, tmp_path, preset):
    for video in list_videos(num_train=30, num_val=0, seed=0):
        (tmp_path / "clips" / video.label).mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "clips" / video.label, video, **RENDERING)
        assert video_path(tmp_path / "clips" / video.label, video).exists()
    assert vidflow("init", tmp_path / "clips", "--preset", preset, "--output", tmp_path / "mine.yaml").returncode == 0
    small = copy.deepcopy(SMALL)
    if preset == "merge_sweep":  # whose reductions are for 6 x 6 patches
        del small["encoder"], small["video"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small | {"root": str(tmp_path / "root")}))
    few = [] if preset == "tasks" else ["trials.axes.core=[gru]", "trials.axes.seed=[0]"]
    done = vidflow("run", tmp_path / "mine.yaml", tmp_path / "small.yaml", *few)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stderr
