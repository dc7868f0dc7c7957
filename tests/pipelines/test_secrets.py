"""The password of a tracking server through the whole command: it opens the server and appears nowhere."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from mlflow_server import behind_password, serve
from tiny_experiment import TINY

from vidflow.config.tracking_uri import default_uri
from vidflow.tracking import Tracker

SECRET = "hunter2-not-to-be-seen"


def arguments_of_others(driver: int) -> str:
    """The arguments of all processes but the driver, which has what the user typed."""
    texts = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != driver:
            try:
                texts.append((entry / "cmdline").read_text())
            except (OSError, UnicodeDecodeError):
                continue
    return "\n".join(texts)


@pytest.mark.slow
def test_a_password_in_the_address_opens_the_server_and_is_seen_nowhere(tmp_path):
    store = tmp_path / "store"
    with Tracker(tmp_path, "none", uri=default_uri(store), experiment="before") as tracker:
        tracker.ids()
    ray_folder = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp")  # sockets want short names
    with serve(default_uri(store)) as server, behind_password(server, "me", SECRET) as port, ray_folder:
        config = tmp_path / "tiny.yaml"
        config.write_text(TINY.format(root=tmp_path / "root") + "tracking: {uri: '${oc.env:STORE}'}\n")
        environment = {
            **os.environ,
            "STORE": f"http://me:{SECRET}@127.0.0.1:{port}",
            "RAY_TMPDIR": ray_folder.name,
            "PYTHONWARNINGS": "ignore",
        }
        said = ""
        for words in (["--print"], [], ["--print"]):
            command = [sys.executable, "-m", "pipelines.cli", "run", str(config), *words]
            with (tmp_path / "said").open("w+") as output:
                driver = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
                while driver.poll() is None:
                    assert SECRET not in arguments_of_others(driver.pid)
                    time.sleep(0.5)
                output.seek(0)
                said += output.read()
            assert driver.returncode == 0, said
        assert SECRET not in said
        assert f"http://127.0.0.1:{port}" in said
        places = [path for folder in (tmp_path, Path(ray_folder.name)) for path in folder.rglob("*") if path.is_file()]
        assert [path for path in places if SECRET.encode() in path.read_bytes()] == []
        assert any(path.suffix == ".log" for path in places)
    assert next((tmp_path / "root").glob("sweeps/*/manifest.json")).is_file()


PASSWORDS = [SECRET, f"p@{SECRET}", f"{SECRET}/x", f"x#{SECRET}", f"?{SECRET}", f"8{SECRET}"]
PASSWORDS += [
    f"s3'{SECRET}",
    f's3"{SECRET}',
    f"pa {SECRET}",
    f"123/{SECRET}",
    f"a: {SECRET}",
    f"${{x {SECRET}",
    f"=://{SECRET}",
]


@pytest.mark.parametrize("word", ["tracking.url", "trackng.uri", "tracking.uri.x", "root", "video.manifest"])
@pytest.mark.parametrize("password", PASSWORDS)
def test_a_refusal_shows_no_password(vidflow_refusal, word, password):
    said = vidflow_refusal(f"{word}=http://me:{password}@host:5000/p")
    assert SECRET not in said
    assert word.split(".")[0] in said or "settings cannot be merged" in said


@pytest.mark.parametrize("uri", [f"me:{SECRET}@host", f"http://me:{SECRET}/@host", f"http://host/?token={SECRET}"])
def test_an_address_that_is_none_is_refused_without_its_password(vidflow_refusal, uri):
    assert SECRET not in vidflow_refusal(f"tracking.uri={uri}")


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["ftp://", "postgresql://", ""])
def test_an_address_of_another_kind_is_refused_without_its_password(vidflow_refusal, scheme, password):
    assert SECRET not in vidflow_refusal(f"tracking.uri={scheme}me:{password}@host/x")


@pytest.mark.parametrize("password", PASSWORDS)
def test_an_address_without_its_key_is_refused_without_its_password(vidflow_refusal, password):
    said = vidflow_refusal(f"http://me:{password}@host")
    assert SECRET not in said
    assert "tracking.uri=ADDRESS" in said


@pytest.fixture
def vidflow_refusal(tiny, capsys):
    from pipelines.cli import main

    def refuse(*settings: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["run", str(tiny), *settings])
        assert ended.value.code == 2
        said = capsys.readouterr()
        return said.out + said.err

    return refuse
