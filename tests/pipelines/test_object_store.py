"""The whole line on an object store: the same bytes as on a disk, whatever store, network and other commands do."""

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from object_server import BUCKET, closed_network, connect, environment, misbehaving, serve_objects
from pyarrow.fs import FileSelector
from tiny_experiment import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
SAME = (".mp4", ".tar", ".arrow", "best.safetensors", "predictions.safetensors", "clips.parquet")


@pytest.fixture(scope="module", autouse=True)
def is_closed():
    with closed_network() as is_closed:
        yield is_closed


@pytest.fixture(scope="module")
def object_port(is_closed):  # after the network is closed, as the server is only there
    with serve_objects() as port:
        yield port


@pytest.fixture
def proxy(object_port, monkeypatch):
    with misbehaving(object_port) as proxy:
        for name, value in environment(proxy.port).items():
            monkeypatch.setenv(name, value)
        yield proxy


def on_objects(folder: Path, name: str) -> Path:
    """Write the config of a tiny experiment whose root is a prefix; return it."""
    config = folder / "objects.yaml"
    workers = ", ".join(f"{stage}: {{workers: 1}}" for stage in ("shard", "extract", "trials"))
    own = f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db'}}\nresources: {{cache: {folder}/cache, {workers}}}\n"
    config.write_text(TINY.format(root=f"s3://{BUCKET}/{name}") + own)
    return config


def stored(port: int, name: str) -> dict[str, str]:
    """Return the digest of each file of a prefix whose bytes must be those of a run on a disk."""
    files = connect(port)
    found = files.get_file_info(FileSelector(f"{BUCKET}/{name}", recursive=True))
    paths = [each.path for each in found if each.is_file and each.path.endswith(SAME)]
    digests = {}
    for path in paths:
        with files.open_input_file(path) as stream:
            digests[path.removeprefix(f"{BUCKET}/{name}/")] = hashlib.sha256(stream.read()).hexdigest()
    return digests


def on_disk(root: Path) -> dict[str, str]:
    paths = [
        path for path in root.rglob("*") if path.name.endswith(SAME) and not {"tune", "mlartifacts"} & {*path.parts}
    ]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def flip_stored(port: int, name: str) -> None:
    """Change one bit of an object; the copies on this node stay whole."""
    files = connect(port)
    with files.open_input_file(name) as stream:
        data = bytearray(stream.read())
    data[len(data) // 2] ^= 1
    with files.open_output_stream(name) as stream:
        stream.write(bytes(data))


def test_no_network_but_this_machine_is_there(is_closed, object_port):
    if not is_closed:
        pytest.skip("this system does not allow it, so the other tests ran with what network there is")
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 80), timeout=5)
    socket.create_connection(("127.0.0.1", object_port)).close()


def test_the_line_on_an_object_store_makes_the_bytes_of_a_disk(
    proxy, object_port, tmp_path, vidflow, finished_experiment
):
    config = on_objects(tmp_path, "line")
    done = vidflow("run", config)
    assert done.returncode == 0, done.stderr
    assert f"s3://{BUCKET}/line/reports/" in done.stderr
    assert str(tmp_path / "cache") not in done.stderr
    expected = on_disk(finished_experiment.root)
    assert len(expected) >= 60 + 3 + 3
    assert stored(object_port, "line") == expected

    proxy.seen.clear()
    again = vidflow("run", config)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already done") == 5
    assert not [path for method, path in proxy.seen if method in ("PUT", "POST", "DELETE")]

    shutil.rmtree(tmp_path / "cache")
    video = next(name for name in expected if name.endswith(".mp4"))
    predicted = vidflow("predict", config, f"s3://{BUCKET}/line/{video}")
    assert predicted.returncode == 0, predicted.stderr
    there = vidflow("predict", finished_experiment.config, finished_experiment.root / video)
    assert predicted.stdout == there.stdout
    again = vidflow("run", config, "report.title=Other")
    assert again.returncode == 0, again.stderr
    listed = vidflow("ls", f"s3://{BUCKET}/line")
    assert listed.stdout.count("completed") == 2, listed.stderr
    compared = vidflow("compare", f"s3://{BUCKET}/line", "--to", tmp_path / "page.html")
    assert compared.returncode == 0, compared.stderr

    check_and_repair(object_port, vidflow, config, expected)
    clean_up(object_port, vidflow, config, expected)


def check_and_repair(port, vidflow, config, expected):
    root = f"s3://{BUCKET}/line"
    sound = vidflow("verify", root)
    assert sound.returncode == 0, sound.stderr
    assert f"verify: {root}: " in sound.stderr
    assert "; sound" in sound.stderr
    changed = [next(name for name in sorted(expected) if name.endswith(kind)) for kind in (".tar", ".arrow")]
    for name in changed:
        flip_stored(port, f"{BUCKET}/line/{name}")
    found = vidflow("verify", config, "--deep", 2)
    assert found.returncode == 1
    assert found.stdout.startswith(f"{root}\n")
    assert "broken: 2" in found.stdout
    for name in changed:
        assert f"{name} its bytes are not those that were written" in " ".join(found.stdout.split())
    assert f"`vidflow verify {root} --repair`" in found.stderr
    repaired = vidflow("verify", root, "--repair")
    assert repaired.returncode == 0, repaired.stderr
    for name in changed:
        assert f"deleted {root}/{name}\n" in repaired.stderr
    again = vidflow("run", config)
    assert again.returncode == 0, again.stderr
    assert stored(port, "line") == expected
    deep = vidflow("verify", config, "--deep", 3)
    assert deep.returncode == 0, deep.stderr
    assert "; sound" in deep.stderr
    assert "frames 3 0 0 0 tokens base 3 0 0 0" in " ".join(deep.stdout.split())


def clean_up(port, vidflow, config, expected):
    only_gru = (config, "trials.axes.core=[gru]")
    before = stored(port, "line")
    for more in ([], ["--older-than", "1", "--yes"]):  # all is young, also what is copied to this node
        shown = vidflow("gc", *only_gru, *more)
        assert shown.returncode == 0, shown.stderr
        assert stored(port, "line") == before
    assert "nothing to delete" in shown.stderr
    done = vidflow("gc", *only_gru, "--yes", "--root", f"s3://{BUCKET}/line")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"s3://{BUCKET}/line: no given config refers to")
    assert "classification, mean, base" in done.stdout
    gone = expected.keys() - stored(port, "line").keys()
    assert gone
    assert {name.split("/")[0] for name in gone} == {"trials"}
    left = vidflow("ls", f"s3://{BUCKET}/line")
    assert "unfinished" not in left.stdout  # no folder is left behind
    assert left.stdout.count("completed") == 1
    sound = vidflow("verify", config)
    assert sound.returncode == 0, sound.stderr
    assert sound.stderr.rstrip().endswith("; sound")
    assert vidflow("gc", *only_gru).stderr.count("nothing to delete") == 1


def test_trials_on_frames_are_planned_and_trained_on_an_object_store_as_on_a_disk(
    proxy, object_port, tmp_path, vidflow, copied_config
):
    config, name = on_objects(tmp_path, "frames"), f"{BUCKET}/frames"
    frames = ["trials.trial.feed=shards", "trials.trial.score_by=video", "trials.axes.core=[mean]"]
    planned = vidflow("plan", config, *frames)
    assert planned.returncode == 0, planned.stderr
    assert "more in the object store" in planned.stdout
    found = connect(object_port).get_file_info(FileSelector(name, recursive=True))
    assert [Path(each.path).name for each in found if each.is_file] == ["plan.json"]
    done = vidflow("run", config, *frames)
    assert done.returncode == 0, done.stderr
    there = vidflow("run", copied_config, *frames)
    assert there.returncode == 0, there.stderr
    ours = stored(object_port, "frames")
    assert sum(path.startswith("trials/") for path in ours) == 2
    assert ours.items() <= on_disk(copied_config.parent / "root").items()
    refused = vidflow("sweep", config, *frames, "trials.trial.seed=1", "resources.cache_gib=1e-6")
    assert refused.returncode == 2
    assert f"resources.cache_gib: got 1e-06, wanted at least 0.01: trials read s3://{name}/shards/" in refused.stderr


def test_a_store_that_refuses_cuts_and_dawdles_changes_no_byte(
    proxy, object_port, tmp_path, vidflow, finished_experiment
):
    chance = random.Random(0)

    def fault(method, path):
        kind = chance.choice(["refuse", "cut", "short", "slow"])
        # Half of a list is another list, of which no client can know.
        is_bytes = method == "GET" and "list-type" not in path
        return kind if chance.random() < 0.05 and (is_bytes or kind in ("refuse", "slow")) else None

    proxy.fault = fault
    done = vidflow("run", on_objects(tmp_path, "bad"))
    assert done.returncode == 0, done.stderr
    assert "trying for" in done.stderr
    assert stored(object_port, "bad") == on_disk(finished_experiment.root)


def test_a_store_that_is_away_is_one_sentence_and_the_same_command_goes_on(proxy, tmp_path, vidflow):
    config = on_objects(tmp_path, "away")
    assert vidflow("synth", config).returncode == 0
    proxy.fault = lambda method, path: "refuse"
    done = vidflow("shard", config)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"vidflow: s3://{BUCKET}/away")
    assert "check the object store" in last
    assert "Traceback" not in done.stderr
    proxy.fault = lambda method, path: None
    assert vidflow("shard", config).returncode == 0


def test_of_two_commands_on_one_prefix_one_waits_or_is_refused_and_a_killed_one_is_forgotten(
    proxy, object_port, tmp_path, vidflow, finished_experiment
):
    config = on_objects(tmp_path, "two")
    command = [sys.executable, "-m", "pipelines.cli", "run", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy()) as first:
        for line in first.stderr:
            if "shard:" in line:
                break
        refused = vidflow("run", config)
        assert refused.returncode == 1
        assert f"in use by process {first.pid} on {os.uname().nodename}" in refused.stderr
        assert "waiting for up to 10 s" in refused.stderr
        first.send_signal(signal.SIGKILL)
        first.stderr.close()
    time.sleep(1)
    done = vidflow("run", config)
    assert done.returncode == 0, done.stderr
    assert stored(object_port, "two") == on_disk(finished_experiment.root)


def test_a_manifest_and_videos_of_an_object_store_become_shards_and_rejects_show_addresses(
    proxy, object_port, tmp_path, vidflow, finished_experiment
):
    files = connect(object_port)
    videos = sorted(finished_experiment.root.glob("videos/*/*.mp4"))
    rows = ["path,label,split"]
    for number, video in enumerate(videos[:8]):
        with files.open_output_stream(f"{BUCKET}/own/{video.name}") as stream:
            stream.write(video.read_bytes() if number else b"no video")
        path = video.name if number % 2 else f"s3://{BUCKET}/own/{video.name}"
        rows.append(f"{path},{number % 2},{'train' if number < 6 else 'val'}")
    rows.append(f"s3://{BUCKET}/elsewhere/x.mp4,0,train")
    with files.open_output_stream(f"{BUCKET}/own/videos.csv") as stream:
        stream.write("\n".join(rows).encode())
    config = on_objects(tmp_path, "manifest")
    own = [f"video.manifest=s3://{BUCKET}/own/videos.csv", "shards.max_reject_fraction=1"]
    done = vidflow("shard", config, *own)
    assert done.returncode == 0, done.stderr
    assert "shard: 7 clips" in done.stderr
    listed = vidflow("rejects", "list", config, *own)
    assert f"s3://{BUCKET}/own/{videos[0].name}" in listed.stdout, listed.stderr
    assert f"to allow it, set video.video_root=s3://{BUCKET}/elsewhere" in listed.stdout
    assert str(tmp_path) not in listed.stdout
