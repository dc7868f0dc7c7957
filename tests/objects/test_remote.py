"""Objects behind a server that refuses, is slow, or cuts its answers."""

import hashlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vidflow.errors import DamagedError, VidflowError
from vidflow.files import file_stamps, file_state
from vidflow.objects import cache, list_objects, object_state, read_object, remote, write_object
from vidflow.stages.garbage import remove_files
from vidflow.store.digests import check_once
from vidflow.store.layout import (
    committed_entries,
    exists,
    fetch,
    fresh,
    have_sizes,
    list_files,
    list_folders,
    publish,
    publish_json,
    read_json,
    remove,
    remove_folder,
    sha256_of,
)

pytestmark = pytest.mark.slow
DATA = bytes(range(256)) * 5000


def put(path, data=DATA):
    with publish(path) as aside:
        aside.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def times(number, fault):
    """Return a proxy's rule: the first requests for bytes have a fault."""
    left = [number]

    def rule(method, path):
        if method == "GET" and "list-type" not in path and left[0] > 0:
            left[0] -= 1
            return fault
        return None

    return rule


def test_what_is_published_is_listed_read_fetched_and_removed(root):
    put(root / "a" / "x.bin")
    publish_json(root / "a" / "x.bin.json", {"n": 1})
    put(root / "a" / "b" / "y.bin", b"y")
    assert list_files(root / "a") == [root / "a" / "x.bin", root / "a" / "x.bin.json"]
    assert list_files(root, "**/*.bin") == [root / "a" / "b" / "y.bin", root / "a" / "x.bin"]
    assert list_files(root, "*") == []
    assert list_folders(root) == [root / "a"]
    (root / "a" / "x.bin").unlink()  # the node's copy alone
    assert fetch(root / "a" / "x.bin").read_bytes() == DATA
    assert read_json(root / "a" / "x.bin.json") == {"n": 1}
    remove(root / "a" / "x.bin")
    assert not exists(root / "a" / "x.bin")
    with pytest.raises(FileNotFoundError):
        fetch(root / "a" / "x.bin")
    assert list_objects(root / "nothing") == {}
    assert list(committed_entries(root / "nothing", ["a"])) == [None]


@pytest.mark.parametrize("fault", ["refuse", "cut", "short"])
def test_an_answer_that_fails_twice_is_asked_for_again(root, proxy, fault):
    put(root / "x.bin")
    (root / "x.bin").unlink()
    proxy.fault = times(2, fault)
    assert fetch(root / "x.bin").read_bytes() == DATA
    proxy.fault = times(2, fault)
    assert read_object(root / "x.bin") == DATA


def test_a_bucket_whose_tags_are_no_digests_is_read(root, proxy, monkeypatch):
    monkeypatch.setattr(remote, "_other_tags", set())
    put(root / "x.bin")
    proxy.fault = lambda method, path: "tag"
    assert read_object(root / "x.bin") == DATA
    asked = len(proxy.seen)
    assert read_object(root / "x.bin") == DATA
    assert len(proxy.seen) - asked <= 2  # not twice again


def test_a_slow_answer_is_waited_for(root, proxy):
    put(root / "x.bin")
    (root / "x.bin").unlink()
    proxy.fault = lambda method, path: "slow" if method == "GET" else None
    assert fetch(root / "x.bin").read_bytes() == DATA


# Not "short": what pyarrow puts in the place of missing bytes can happen to be these bytes, which is no failure.
@pytest.mark.parametrize("fault", ["refuse", "cut"])
def test_a_store_that_goes_on_failing_is_one_sentence_and_no_file(root, proxy, fault):
    put(root / "x.bin")
    (root / "x.bin").unlink()
    proxy.fault = times(10**6, fault)
    with pytest.raises(VidflowError) as said:
        remote.download(root / "x.bin", object_state(root / "x.bin"), root / "y.bin", patience_seconds=3)
    text = str(said.value)
    assert text.startswith(f"s3://bucket/{root.name}/x.bin: cannot be read (")
    assert "check the object store" in text
    assert "\n" not in text


def test_what_the_store_refuses_for_ever_is_said_at_once(root):
    started = time.monotonic()
    with pytest.raises(VidflowError, match="s3://no-such-bucket/x: cannot be written"):
        write_object(root.parents[0].parent / "no-such-bucket" / "x", b"x")
    assert time.monotonic() - started < 30  # not for a minute, as it tries where it may help


def test_a_damaged_copy_is_copied_again_and_a_damaged_object_set_aside(root):
    digest = put(root / "x.bin")
    state = (root / "x.bin").stat()
    (root / "x.bin").write_bytes(DATA[::-1])
    os.utime(root / "x.bin", ns=(state.st_mtime_ns, state.st_mtime_ns))
    check_once(root / "x.bin", digest)
    assert (root / "x.bin").read_bytes() == DATA
    put(root / "x.bin", DATA[::-1])
    with pytest.raises(DamagedError, match=r"not those that were written.*x\.bin\.damaged"):
        check_once(root / "x.bin", digest)
    assert not exists(root / "x.bin")
    assert exists(root / "x.bin.damaged")


def test_a_full_cache_loses_what_was_not_used_for_longest_but_nothing_without_an_object(root, monkeypatch):
    monkeypatch.setenv(cache.CACHE_LIMIT, str(3.5 * len(DATA) / 2**30))
    monkeypatch.setattr(cache, "_KEPT_SECONDS", 0.0)
    monkeypatch.setattr(cache, "_unseen", {})
    own = root / "tune" / "state.json"
    own.parent.mkdir(parents=True)
    own.write_bytes(DATA)
    for name in "ab":
        put(root / name)
        time.sleep(0.05)
    fetch(root / "a")
    time.sleep(0.05)
    put(root / "c")
    assert own.exists()
    assert (root / "a").exists()
    assert not (root / "b").exists()
    assert fetch(root / "b").read_bytes() == DATA


def test_a_copy_that_another_process_begins_to_use_is_not_removed(root, proxy, monkeypatch):
    monkeypatch.setenv(cache.CACHE_LIMIT, str(1.5 * len(DATA) / 2**30))
    monkeypatch.setattr(cache, "_KEPT_SECONDS", 0.0)
    put(root / "a")
    fetch(root / "a")
    monkeypatch.setattr(cache, "_unseen", {})

    def use(method, path):  # after the copies were listed, while it is asked whether this one has an object
        if path.endswith("/a"):
            os.utime(cache._note_of(root / "a"))

    proxy.fault = use
    time.sleep(0.05)
    put(root / "b")
    assert (root / "a").exists()


def test_workers_that_want_an_object_at_once_copy_it_once(root, proxy):
    put(root / "x.bin")
    (root / "x.bin").unlink()
    time.sleep(3)
    proxy.seen.clear()
    with ThreadPoolExecutor(8) as pool:
        assert {path.read_bytes() for path in pool.map(fetch, [root / "x.bin"] * 8)} == {DATA}
    assert [method for method, _ in proxy.seen].count("GET") == 1


def test_the_digest_of_an_object_is_that_of_the_stored_bytes_whatever_this_nodes_copy_is(root):
    put(root / "x.bin")
    os.utime(root / "x.bin", (0, 0))
    (root / "x.bin").write_bytes(DATA[::-1])
    seconds = object_state(root / "x.bin").modified_seconds
    os.utime(root / "x.bin", (seconds, seconds))  # the copy looks current
    assert sha256_of(root / "x.bin") == hashlib.sha256(DATA).hexdigest()
    with fresh(root / "x.bin") as path:
        assert path.read_bytes() == DATA
    assert fetch(root / "x.bin").read_bytes() == DATA[::-1]
    assert list(root.iterdir()) == [root / "x.bin"]


def test_a_write_that_is_interrupted_leaves_the_old_object_or_the_whole_new_one(root, proxy):
    put(root / "x.bin", b"old" * 10**7)
    (root / "new.bin").write_bytes(new := os.urandom(3 * 10**7))
    proxy.fault = lambda method, path: "slow" if method == "PUT" else None
    threading.Timer(1.0, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        write_object(root / "x.bin", root / "new.bin")
    assert read_object(root / "x.bin") in (b"old" * 10**7, new)


def test_many_objects_are_asked_for_by_one_listing_and_few_one_by_one(root, proxy):
    many = [root / "many" / f"{number}.bin" for number in range(remote._MANY)]
    few = [root / "few" / "a.bin", root / "few" / "gone.bin"]
    for path in (*many, few[0]):
        write_object(path, b"x")
    proxy.seen.clear()
    sizes, times = file_stamps(map(str, (*few, *many, "/no/such/file")))
    assert list(sizes) == [1, -1, *[1] * len(many), -1]
    assert next(zip(sizes, times, strict=True)) == file_state(few[0]).stamp
    assert len(proxy.seen) <= 6


def test_what_is_there_of_many_files_is_found_by_one_listing_and_of_one_by_one_request(root, proxy):
    folder = root / "shards" / "k"
    rows = [{"file": f"{number}.tar", "num_bytes": 1} for number in range(3 * remote._MANY)]
    for row in rows:
        write_object(folder / row["file"], b"x")
    proxy.seen.clear()
    assert have_sizes(folder, rows)
    assert have_sizes(folder, rows[:1])
    assert not have_sizes(folder, [{"file": "0.tar", "num_bytes": 2}])
    assert not have_sizes(folder, [*rows, {"file": "gone.tar", "num_bytes": 1}])
    assert len(list(committed_entries(folder, [row["file"] for row in rows[:5]]))) == 5
    listings = [path for _, path in proxy.seen if "list-type" in path and "max-keys=1000" in path]
    assert len(listings) == 3  # however many shards there are


def test_a_folder_is_deleted_with_few_requests_and_leaves_none_behind(root, proxy):
    paths = [root / "trials" / "k" / f"{number}.bin" for number in range(20)]
    for path in paths:
        write_object(path, b"x")
    proxy.seen.clear()
    remove_folder(root / "trials" / "k")
    assert len(proxy.seen) < 10
    assert list_folders(root / "trials") == []
    write_object(paths[0], b"x")
    assert list(remove_files(root, [paths[0]])) == [paths[0]]
    assert list_folders(root / "trials") == []


def test_another_writers_bytes_replace_an_old_copy(root):
    put(root / "x.json", b"old")
    other = root.parents[2] / "other" / "s3:" / root.relative_to(root.parents[1])
    time.sleep(1.1)
    put(other / "x.json", b"new")
    assert fetch(root / "x.json").read_bytes() == b"new"


def test_a_node_that_cannot_write_its_cache_says_which_node(root, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        VidflowError, match=rf"^{os.uname().nodename}: the cache .* cannot be written .*resources.cache"
    ):
        put(root / "x.bin")
