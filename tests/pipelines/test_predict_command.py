import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from fractions import Fraction
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from pipelines.cli import main
from pipelines.predict_files import read_state, write_state
from vidflow.config.tracking_uri import default_uri
from vidflow.errors import VidflowError
from vidflow.loading import load
from vidflow.stages.trained import read_sweep
from vidflow.store.features import FeatureReader
from vidflow.training.snapshot import BEST, PREDICTIONS, read_tensors
from vidflow.video.ffmpeg import probe, stream_frames, write_h264


@pytest.fixture(scope="module")
def finished(finished_experiment) -> Path:
    """The root of a small experiment."""
    return finished_experiment.root


@dataclasses.dataclass
class Done:
    """What a command left: exit code, output, complaints and log."""

    returncode: int
    stdout: str
    stderr: str
    log: str


@pytest.fixture
def predict(capsys, caplog):
    """`vidflow predict`, in this process, as each start of another takes seconds."""

    def run(*arguments: object) -> Done:
        caplog.clear()
        with pytest.raises(SystemExit) as left:
            main(["predict", *map(str, arguments)])
        return Done(int(left.value.code), *capsys.readouterr(), caplog.text)

    return run


@pytest.fixture(scope="module")
def gru(finished) -> Path:
    """The folder of the trial with a recurrent core."""
    folders = finished.glob("trials/*/")
    return next(path for path in folders if json.loads((path / "result.json").read_text())["settings"]["core"] == "gru")


def validation_videos(root: Path) -> list[Path]:
    return sorted(root.glob("videos/*/val_*.mp4"))


def rows_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def run_of(root: Path) -> tuple[str, str]:
    """The store, and the run of the recurrent trial."""
    client = mlflow.MlflowClient(default_uri(root))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], "params.core = 'gru'")
    return default_uri(root), runs[0].info.run_id


def video_of_each_clip(root: Path) -> dict[str, str]:
    """Name of the video that each key stands for, from the shards."""
    found = {}
    for path in root.glob("shards/*/*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    found[member.name.removesuffix(".json")] = Path(json.load(tar.extractfile(member))["source"]).name
    return found


def test_a_stream_ends_with_the_answer_that_the_trial_gave(finished, gru, predict):
    kept, _ = read_tensors(gru / PREDICTIONS)
    reader, videos = FeatureReader(next(finished.glob("features/*/"))), video_of_each_clip(finished)
    names = reader.metadata["class_names"]
    for row, index in list(enumerate(kept["indices"].tolist()))[:2]:
        wanted = dict(zip(names, kept["logits"][row].float().softmax(-1).tolist(), strict=True))
        done = predict(gru, next(finished.glob(f"videos/*/{videos[reader.keys[index]]}")))
        assert done.returncode == 0, done.stderr
        assert "predict: 4 frames" in done.log
        rows = rows_of(done.stdout)
        assert [line["index"] for line in rows] == [0, 1, 2, 3]
        got = {entry["name"]: entry["probability"] for entry in rows[-1]["classes"]}
        # Batches of one frame and of sixteen clips differ in the last bits; JSON keeps six digits.
        assert got == pytest.approx({name: wanted[name] for name in got}, abs=1e-4)
        assert min(got.values()) >= sorted(wanted.values())[-5] - 1e-4


def test_a_run_is_fetched_and_everything_asked_for_is_written(finished, predict, tmp_path):
    uri, run_id = run_of(finished)
    out, lines, state = tmp_path / "out.mp4", tmp_path / "out.jsonl", tmp_path / "state.safetensors"
    video = validation_videos(finished)[0]
    done = predict(
        run_id, video, "--tracking-uri", uri, "--out", out, "--json", lines, "--save-state", state,
        "--fps", "8", "--max-frames", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert len(rows_of(lines.read_text())) == len(probe(out).pts_seconds) == 3
    assert probe(out).fps == 8
    assert probe(out).codec == "h264"
    for path in (out, lines, state):
        assert str(path) in done.log
    again = predict(run_id, video, "--tracking-uri", uri, "--fps", "8", "--load-state", state, "--start", "0.375")
    whole = predict(run_id, video, "--tracking-uri", uri, "--fps", "8")
    assert rows_of(lines.read_text()) + rows_of(again.stdout) == rows_of(whole.stdout)


def test_mistakes_are_named_without_a_traceback(finished, gru, predict, tmp_path):
    video = validation_videos(finished)[0]
    uri, _ = run_of(finished)
    (tmp_path / "state.safetensors").write_bytes(b"no state")
    for arguments, complaint, code in [
        ((gru, tmp_path / "gone.mp4"), "no such file", 1),
        ((tmp_path, video), "has not finished an epoch", 1),
        ((tmp_path / "gone", video), "wanted a config, a trial's folder, or the id of an MLflow run", 1),
        (("f" * 32, video, "--tracking-uri", uri), "cannot be read from", 1),
        ((gru, video, "--box", "1,2,3,4"), "follows neither boxes nor points", 1),
        ((gru, video, "--box", "1,2"), "got 2 numbers in '1,2', wanted 4", 2),
        ((gru, video, "--fps", "0"), "wanted a number above 0", 2),
        ((gru, video, "--fps", "nan"), "wanted a finite number", 2),
        ((gru, video, "--start", "nan"), "wanted a finite number", 2),
        ((gru, video, "--box", "nan,0,1,1"), "wanted a finite number", 2),
        ((gru, video, "--max-frames", "0"), "wanted a number from 1", 2),
        ((gru, video, "--out", "/proc/x/x.mp4"), "--out: cannot make /proc/x", 1),
        ((gru, video, "--depth", video), "(File exists)", 1),
        ((gru, video, "--save-state", "/proc/s.safetensors"), "--save-state: cannot write to /proc", 1),
        ((gru, video, "--json", "/dev/full"), "/dev/full: cannot be written (No space left on device)", 1),
        ((gru, video, "--load-state", tmp_path / "state.safetensors"), "make it with --save-state", 1),
        ((gru, video, "--weights", tmp_path / "w.safetensors"), "no such file, wanted the weights of test_vit", 1),
    ]:
        done = predict(*arguments)
        assert complaint in done.stderr
        assert done.returncode == code
        assert "Traceback" not in done.stderr


def test_what_is_read_is_never_written_over(finished, gru, predict, tmp_path):
    video, state = tmp_path / "video.mp4", tmp_path / "state.safetensors"
    shutil.copy(validation_videos(finished)[0], video)
    assert predict(gru, video, "--max-frames", "2", "--save-state", state).returncode == 0
    hard, soft, pictures = tmp_path / "hard.mp4", tmp_path / "soft.mp4", tmp_path / "pictures"
    hard.hardlink_to(video)
    soft.symlink_to(video)
    pictures.mkdir()
    (pictures / "000000.png").symlink_to(video)
    read = [video, state, *(path for path in gru.iterdir() if path.is_file())]
    before = [path.read_bytes() for path in read]
    for options, complaint in [
        (("--out", video), "would write over the video"),
        (("--out", hard), "would write over the video"),
        (("--json", soft), "would write over the video"),
        (("--json", tmp_path / "pictures" / ".." / "video.mp4"), "would write over the video"),
        (("--depth", pictures), "would write over the video"),
        (("--save-state", gru / BEST), "would write over the trial's"),
        (("--json", gru / "result.json"), "would write over the trial's"),
        (("--load-state", state, "--json", state), "would write over --load-state"),
        (("--out", tmp_path / "new.mp4", "--json", tmp_path / "new.mp4"), "would write over --out"),
        (("--out", "/dev/null"), "is not a regular file"),
    ]:
        done = predict(gru, video, *options)
        assert complaint in done.stderr
        assert done.returncode == 1
        assert done.stdout == ""
    assert [path.read_bytes() for path in read] == before
    # A state may be replaced by the one that follows it.
    done = predict(gru, video, "--load-state", state, "--start", "0.5", "--max-frames", "1", "--save-state", state)
    assert done.returncode == 0, done.stderr
    assert state.read_bytes() != before[1]


def test_a_state_goes_on_with_its_own_trial_alone(finished, gru, predict, tmp_path):
    video, state = validation_videos(finished)[0], tmp_path / "state.safetensors"
    assert predict(gru, video, "--max-frames", "2", "--save-state", state).returncode == 0
    other = next(path.parent for path in finished.glob("trials/*/result.json") if path.parent != gru)
    done = predict(other, video, "--load-state", state)
    own, theirs = (load(trial).model.trial_sha256 for trial in (other, gru))
    assert f"saved by the trial with digest {theirs}, this trial has {own}" in done.stderr
    assert done.returncode == 1
    good = state.read_bytes()
    place = good.index(b"}}") + 20  # in the numbers behind the header
    state.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    assert "damaged: its tensors have digest" in predict(gru, video, "--load-state", state).stderr
    state.write_bytes(good)
    tensors = read_state(state)
    tensors["core.0"][..., 0] = torch.nan
    write_state(state, tensors)
    assert "the state holds NaN or infinite numbers in core.0" in predict(gru, video, "--load-state", state).stderr
    state.unlink()
    os.mkfifo(state)
    assert "no such file" in predict(gru, video, "--load-state", state).stderr
    assert "wanted a trial's folder" in predict(state, video).stderr


def test_an_interrupt_ends_the_video_and_keeps_what_came_before(gru, tmp_path):
    video, out, lines = tmp_path / "long.mp4", tmp_path / "out.mp4", tmp_path / "out.jsonl"
    write_h264(video, (np.full((64, 64, 3), n % 256, np.uint8) for n in range(4000)), fps=25)
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "predict",
        gru,
        video,
        "--fps",
        "25",
        "--out",
        out,
        "--json",
        lines,
    ]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (lines.exists() and lines.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert 0 < len(probe(out).pts_seconds) == len(rows_of(lines.read_text())) < 4000


def test_the_written_video_has_the_frames_and_times_of_the_source_and_holds_the_prediction(gru, predict, tmp_path):
    video, out, lines = tmp_path / "video.mp4", tmp_path / "out.mp4", tmp_path / "rows.jsonl"
    times = [0, 40, 80, 120, 200, 240, 400, 440, 480, 900, 940, 980]  # of a camera that drops frames
    grey = (np.full((240, 320, 3), 20 * number, np.uint8) for number in range(len(times)))
    write_h264(video, grey, fps=25, pts=times, time_base=Fraction(1, 1000))
    assert predict(gru, video, "--fps", "2", "--out", out, "--json", lines).returncode == 0
    np.testing.assert_allclose(probe(out).pts_seconds, probe(video).pts_seconds, atol=1e-3)
    assert lines.read_text() == predict(gru, video, "--fps", "2").stdout
    assert [row["pts_seconds"] for row in rows_of(lines.read_text())][:2] == [0.24, 0.48]
    # The bar below the picture is blue up to the probability; before the first prediction there is none.
    drawn = [frame.pixels[245:255, 2].mean(0) for frame in stream_frames(str(out), fps=1000, every_frame=True)]
    is_blue = [blue > red + 100 for red, _, blue in dict.fromkeys(map(tuple, drawn))]
    assert is_blue[0] is np.False_
    assert is_blue[-1]


def test_the_best_trial_of_a_config_a_sweep_and_a_root_is_taken_and_named(finished_experiment, finished, predict):
    video, best = validation_videos(finished)[0], read_sweep(next(finished.glob("sweeps/*/"))).best_trial()
    wanted = predict(best.directory, video).stdout
    uri, _ = run_of(finished)
    parent = json.loads(next(finished.glob("sweeps/*/manifest.json")).read_text())["details"]["run_id"]
    for trial, more in [
        (finished, ()),
        (next(finished.glob("sweeps/*/")), ()),
        (finished_experiment.config, ()),
        (parent, ("--tracking-uri", uri)),
    ]:
        done = predict(trial, video, *more)
        assert done.returncode == 0, done.stderr
        assert done.stdout == wanted
        assert "best trial of" in done.log
        assert f"val/top1 {best.best.metrics['val/top1']:.3f}" in done.log
        assert best.key in done.log or "core=" in done.log
    assert "settings change a config" in predict(best.directory, video, f"root={finished}").stderr


def test_mlflow_loads_the_model_and_predicts_paths_lists_and_tables(finished, gru, predict, monkeypatch):
    import pandas as pd

    uri, run_id = run_of(finished)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    videos = [str(path) for path in validation_videos(finished)[:2]]
    one, several = model.predict(videos[0]), model.predict(videos)
    assert list(several.columns) == ["path", "index", "pts_seconds", "classes"]
    assert several["path"].tolist() == [videos[0]] * 4 + [videos[1]] * 4
    pd.testing.assert_frame_equal(one, several[:4])
    pd.testing.assert_frame_equal(model.predict(pd.DataFrame({"path": videos})), several)
    rows = rows_of(predict(gru, videos[0]).stdout)
    assert one.drop(columns="path").to_dict("records") == rows
    # Without anything to follow, a table with the column of those that do is the same.
    asked = pd.DataFrame({"path": videos, "queries": [None, float("nan")]})
    pd.testing.assert_frame_equal(model.predict(asked), several)
    with pytest.raises(VidflowError, match="got the columns file; wanted `path`"):
        model.predict(pd.DataFrame({"file": videos}))
    moved = {"weights": str(finished / "moved.safetensors")}
    with pytest.raises(VidflowError, match=r"moved\.safetensors: no such file"):
        mlflow.pyfunc.load_model(f"runs:/{run_id}/model", model_config=moved)


def test_the_model_holds_the_weights_and_text_and_no_pickle(finished):
    uri, run_id = run_of(finished)
    (model,) = mlflow.MlflowClient(uri).get_run(run_id).outputs.model_outputs
    folder = next(finished.glob(f"mlartifacts/models/{model.model_id}/artifacts"))
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"MLmodel", "conda.yaml", "mlflow_model.py", f"artifacts/{BEST}"}


@pytest.mark.slow
@pytest.mark.parametrize("draw", [False, True])
def test_memory_does_not_grow_on_a_video_of_ten_thousand_frames(gru, tmp_path, draw):
    video, lines = tmp_path / "long.mp4", tmp_path / "rows.jsonl"
    noise = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    write_h264(video, (noise[number % 50] for number in range(10_000)), fps=8)
    command = [sys.executable, "-m", "pipelines.cli", "predict", gru, video, "--json", lines, "--fps", "8"]
    command += ["--out", tmp_path / "out.mp4"] if draw else []
    peaks: dict[int, int] = {}
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            if found is not None and lines.exists():
                peaks[lines.read_bytes().count(b"\n")] = int(found[1])
            time.sleep(0.1)
    assert process.returncode == 0
    # What the process takes to end, when all rows are written, is another matter.
    early, late = min(number for number in peaks if number >= 1000), max(number for number in peaks if number < 10_000)
    assert early < 2000 < 9000 < late
    assert peaks[late] < 1.02 * peaks[early]
