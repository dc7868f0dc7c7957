import subprocess
import sys
from pathlib import Path

import pytest

from vidflow.errors import VidflowError
from vidflow.store.layout import (
    FileEntry,
    committed_entry,
    exclusive,
    file_sha256,
    publish,
    publish_entry,
    remove_leftovers,
)


def commit(folder: Path, data: bytes = b"data") -> FileEntry:
    with publish(folder / "a.bin") as aside:
        aside.write_bytes(data)
    entry = FileEntry(
        file="a.bin",
        num_bytes=len(data),
        sha256=file_sha256(folder / "a.bin"),
        num_clips=1,
        seconds=0.0,
        rejects=[],
        details={},
    )
    publish_entry(folder, entry)
    return entry


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    commit(tmp_path, b"old")

    def fail():
        with publish(tmp_path / "a.bin") as aside:
            aside.write_bytes(b"half")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        fail()
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_killed_writer_leaves_no_file_under_the_final_name(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from vidflow.store.layout import publish\n"
        "with publish(Path(sys.argv[1]) / 'a.bin') as aside:\n"
        "    aside.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    assert not (tmp_path / "a.bin").exists()
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_exists_only_with_a_manifest_that_agrees(tmp_path):
    assert committed_entry(tmp_path, "a.bin") is None
    entry = commit(tmp_path)
    assert committed_entry(tmp_path, "a.bin") == entry
    (tmp_path / "a.bin").write_bytes(b"dat")
    assert committed_entry(tmp_path, "a.bin") is None


def test_a_root_is_held_by_one_process_and_freed_when_it_dies(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from vidflow.store.layout import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(VidflowError, match=f"in use by process {holder.pid}"), exclusive(tmp_path):
            pass
        holder.kill()
    with exclusive(tmp_path):
        pass
