"""A command with nothing to do: what it reads and imports, on an experiment of many feature sets."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from feature_sets import finish_features

from pipelines.shard import build_shard_builder
from vidflow.config.load import load_config
from vidflow.records import ClipTokens, StageManifest
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import finish_stage, manifest_seal, publish_manifest
from vidflow.stages.scan import VideoScanner
from vidflow.store.layout import TRIAL_RESULT, list_file, publish_json
from vidflow.video.ffmpeg import write_h264

CONFIG = """\
root: {folder}/root
video: {{manifest: {folder}/manifest.csv, sampling: {{num_frames: 4}}, size: 32}}
encoder: {{img_size: 32, weights: {folder}/weights.safetensors, name: test_vit}}
features:
  base: {{depths: [0]}}
  early: {{depths: [1], reducer: {{name: tome, settings: {{num_merged: 1}}}}}}
"""
CACHED = "  r{number}: {{depths: [0], reducer: {{name: random, settings: {{keep: {keep}}}}}}}\n"
COMMAND = """\
import json, sys
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
from pipelines.cli import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    print()
    print(json.dumps({"code": left.code, "opened": opened, "has_torch": "torch" in sys.modules}))
"""


def finish_shards(experiment: Experiment) -> None:
    work = experiment.scanned_shards
    entries = [build_shard_builder(experiment.config, work.address.directory)()(unit) for unit in work.units]
    details = {"class_names": work.class_names, "plan_rejects": work.rejects_digest, "build_rejects": []}
    finish_stage(work.address, stage="shard", entries=entries, clips=[], rejects=[], wall_seconds=0.0, **details)
    experiment.published("shard")


def finish_sweep_and_report(experiment: Experiment) -> None:
    for key in ("one", "two"):
        best = experiment.root / "trials" / key / "best.safetensors"
        best.parent.mkdir(parents=True)
        best.write_bytes(b"best")
        publish_json(best.with_name(TRIAL_RESULT), {"files": [list_file(best)]})
    common = {"fingerprint": "", "num_files": 1, "num_bytes": 4, "worker_seconds": 1.0, "wall_seconds": 1.0}
    sweep = StageManifest(stage="sweep", **common, details={"trials": ["one", "two"]})
    publish_manifest(experiment.sweep, sweep)
    publish_manifest(
        experiment.report, StageManifest(stage="report", **common, details={"sweep": manifest_seal(sweep)})
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """An experiment of 15 feature sets whose stages are all committed; what is in them matters to none of them."""
    folder = tmp_path_factory.mktemp("done")
    for number, name in enumerate(("a.mp4", "b.mp4")):
        write_h264(folder / name, np.full((8, 32, 32, 3), 90 * number, np.uint8), fps=8)
    (folder / "manifest.csv").write_text("path,label,split\na.mp4,x,train\nb.mp4,y,val\n")
    (folder / "weights.safetensors").write_bytes(bytes(range(256)))
    cached = [CACHED.format(number=number, keep=(number + 1) / 20) for number in range(13)]
    (folder / "config.yaml").write_text(
        CONFIG.format(folder=folder) + "".join(cached) + "trials: {axes: {core: [mean]}}"
    )
    experiment = Experiment(load_config([folder / "config.yaml"]))
    experiment.index.add(VideoScanner(**asdict(experiment.limits))(experiment.list_unscanned()))
    experiment.published("scan")
    finish_shards(experiment)
    clip = ClipTokens(
        key="k",
        label=0,
        split="train",
        pts_seconds=np.zeros(1),
        tokens=np.zeros((1, 2), np.float16),
        prefix=np.zeros((1, 1, 2), np.float16),
        counts=np.ones((1, 1), np.int32),
    )
    for address in experiment.features.values():
        finish_features(address.directory, {"f.arrow": [clip]}, {})
    finish_sweep_and_report(experiment)
    with experiment.exclusive():  # at whose end the rows of the manifest are kept for later commands
        assert experiment.shards is not None
    return folder


@pytest.mark.parametrize("options", [[], ["--print"]], ids=["run", "print"])
def test_a_run_with_everything_done_reads_each_file_once_and_imports_no_torch(finished, options):
    command = [sys.executable, "-c", COMMAND, "run", str(finished / "config.yaml"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["code"], said["has_torch"]) == (0, False), done.stderr
    if options:
        assert (done.stdout.count(" done "), done.stdout.count("to do")) == (18, 0)
    else:
        assert done.stderr.count("already done") == 4
    opened = Counter(said["opened"])
    assert [opened[str(finished / name)] for name in ("weights.safetensors", "manifest.csv")] == [1, 1]
    read = {name: count for name, count in opened.items() if name.startswith(str(finished)) and name.endswith(".json")}
    assert set(read.values()) == {1}
    manifests = [*finished.glob("root/*/*/manifest.json"), *finished.glob("root/trials/*/result.json")]
    assert len(manifests) == 20
    assert set(map(str, manifests)) <= read.keys()
