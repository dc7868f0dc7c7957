import os
import time
from pathlib import Path

import pytest

from vidflow.errors import DamagedError
from vidflow.files import file_sha256
from vidflow.store import digests
from vidflow.store.digests import check_once


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """A file, on a node that remembers no check."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "GRACE_SECONDS", 0.1)  # enough for a disk whose clock counts finely
    path = tmp_path / "a.bin"
    path.write_bytes(b"data")
    return path


@pytest.fixture
def num_read(monkeypatch) -> list[Path]:
    """The files that were read, in turn."""
    read: list[Path] = []
    monkeypatch.setattr(digests, "file_sha256", lambda path: (read.append(path), file_sha256(path))[1])
    return read


def settle(path: Path) -> None:
    """Wait until the file has not changed for a while."""
    time.sleep(max(0.0, path.stat().st_ctime + 0.15 - time.time()))


def test_a_file_is_read_once_and_again_only_after_it_changed(path, num_read):
    sha256 = file_sha256(path)
    settle(path)
    for _ in range(3):
        check_once(path, sha256)
    assert len(num_read) == 1
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))  # only ctime tells of it
    check_once(path, sha256)
    assert len(num_read) == 2


def test_a_check_right_after_a_change_is_not_remembered(path, num_read):
    for _ in range(2):
        check_once(path, file_sha256(path))
    assert len(num_read) == 2


def test_other_bytes_of_the_same_length_and_time_are_found_and_the_file_set_aside(path):
    sha256 = file_sha256(path)
    settle(path)
    check_once(path, sha256)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"dat!")
    os.utime(path, ns=times)
    with pytest.raises(DamagedError, match=r"a\.bin: its bytes are not .* set aside as a\.bin\.damaged; .* makes it"):
        check_once(path, sha256)
    assert not path.exists()
    assert path.with_name("a.bin.damaged").read_bytes() == b"dat!"
    with pytest.raises(DamagedError, match="gone"):
        check_once(path, sha256)


def test_a_remembered_check_says_nothing_of_another_digest(path):
    settle(path)
    check_once(path, file_sha256(path))
    with pytest.raises(DamagedError, match="wanted 0000"):
        check_once(path, "0" * 64)


@pytest.mark.parametrize("note", [b"", b"4 ", b"\xff\xfe"])
def test_a_note_that_is_cut_or_altered_only_costs_another_check(path, num_read, note, tmp_path):
    settle(path)
    check_once(path, file_sha256(path))
    (remembered,) = (tmp_path / "cache/vidflow/checked").iterdir()
    remembered.write_bytes(note)
    check_once(path, file_sha256(path))
    assert len(num_read) == 2


def test_a_cache_that_cannot_be_written_only_costs_another_check(path, num_read, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    settle(path)
    for _ in range(2):
        check_once(path, file_sha256(path))
    assert len(num_read) == 2
