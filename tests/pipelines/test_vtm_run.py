"""VTM and the adapter from the command to the page, the runs and the predictions."""

import json

import pytest
from tiny_experiment import TINY

from vidflow.training.snapshot import BEST, read_tensors


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vtm_and_the_adapter_run_from_the_command_and_only_groups_of_one_frame_predict_streams(
    in_one_ray, here, tmp_path
):
    path, root = tmp_path / "vtm.yaml", tmp_path / "root"
    path.write_text(TINY.format(root=root))
    axes = ["trials.axes={core: [vtm], token_adapter: [0, 0.25]}", "trials.trial.vtm_factor=2"]
    done = in_one_ray("run", path, *axes)
    assert done.returncode == 0, done.stderr
    assert "vidflow predict" not in done.stderr
    found = {}
    for file in root.glob(f"trials/*/{BEST}"):
        tensors, metadata = read_tensors(file)
        found[metadata["identity"]["settings"]["token_adapter"]] = {name.split(".")[0] for name in tensors}
    assert found == {0.0: {"core", "readout"}, 0.25: {"core", "readout", "token_adapter"}}
    runs = json.loads(here("ls", path, *axes, "--json").stdout)
    assert "vtm" in json.dumps(runs)
    (video, *_) = sorted(root.glob("videos/*/*.mp4"))
    refused = here("predict", path, video, *axes)
    assert refused.returncode != 0
    assert "the trial's core vtm sees groups of frames, so it cannot run frame by frame" in refused.stderr
    assert "Traceback" not in refused.stderr
    streamed = [*axes, "trials.trial.vtm_groups=[1,1,1]"]
    done = in_one_ray("run", path, *streamed)
    assert done.returncode == 0, done.stderr
    done = here("predict", path, video, *streamed)
    assert done.returncode == 0, done.stderr
    assert all("classes" in json.loads(line) for line in done.stdout.splitlines())
    wrong = here("run", path, *axes, "trials.trial.vtm_groups=[1,1,3]", "--print")
    assert wrong.returncode == 2
    assert "trials.trial.vtm_groups: got [1, 1, 3] for clips of 4 frames; wanted a last group that divides 4" in (
        wrong.stderr
    )
