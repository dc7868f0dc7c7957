"""Files that a manifest names: whatever they are, they are opened without waiting or refused with a reason."""

import contextlib
import hashlib
import os
import re
import socket
import tempfile
from pathlib import Path

import pytest

from vidflow.errors import VideoError
from vidflow.files import file_state, open_regular
from vidflow.video.sandboxed import check_unchanged, digest_within


def reason_of(call, *arguments) -> tuple[str, str]:
    with pytest.raises(VideoError) as caught:
        call(*arguments)
    return caught.value.reason, str(caught.value)


@contextlib.contextmanager
def without_privileges():
    """Be somebody whom permissions hold, for root they do not."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    "make",
    [
        make_fifo,
        make_socket,
        Path.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("/dev/null"),
        lambda path: (make_fifo(path.with_name("pipe")), path.symlink_to(path.with_name("pipe"))),
    ],
    ids=["FIFO", "socket", "folder", "link to endless device", "link to device", "link to FIFO"],
)
@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, make):
    path = tmp_path / "a.mp4"
    make(path)
    assert reason_of(open_regular, path)[0] == "NotAFile"


@pytest.mark.parametrize("name", ["nothing", "file/below", "n" * 300, "n/" * 3000])
def test_what_is_not_there_is_missing(tmp_path, name):
    (tmp_path / "file").touch()
    assert reason_of(open_regular, tmp_path / name)[0] == "Missing"


def test_a_file_or_folder_without_permission_is_unreadable():
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "a.mp4").write_bytes(b"x")
        (folder / "a.mp4").chmod(0)
        with without_privileges():
            assert reason_of(open_regular, folder / "a.mp4")[0] == "Unreadable"
        (folder / "a.mp4").chmod(0o644)
        folder.chmod(0)
        with without_privileges():
            assert reason_of(open_regular, folder / "a.mp4")[0] == "Unreadable"
            assert file_state(folder / "a.mp4") == (-1, 0, 0)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file at hand whose reading fails")
def test_a_file_that_fails_to_be_read_is_unreadable():
    reason, message = reason_of(digest_within, Path("/proc/self/mem"), 10.0)
    assert reason == "Unreadable"
    assert "Input/output error" in message


def test_a_digest_is_that_of_all_bytes(tmp_path):
    for size in (0, 1, 3 << 20, (2 << 20) + 1):
        path = tmp_path / "a"
        path.write_bytes(os.urandom(size))
        assert digest_within(path, 60.0) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_too_large_for_its_time_says_how_much_time_would_do(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(64 << 20))
    reason, message = reason_of(digest_within, path, 1e-3)
    assert reason == "Timeout"
    assert "of its 67.1 MB could be hashed" in message
    assert re.search(r"set resources.decode_timeout_seconds to \d+ or leave the file out", message)


def test_a_file_is_unchanged_until_it_is_written_or_gone(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    stamps = {str(path): file_state(path).stamp}
    path.chmod(0o600)
    check_unchanged(stamps)
    os.utime(path, ns=(1, 1))
    assert reason_of(check_unchanged, stamps)[0] == "Changed"
    path.unlink()
    assert reason_of(check_unchanged, stamps)[0] == "Changed"
