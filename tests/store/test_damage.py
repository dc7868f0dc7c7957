"""Whatever bytes of a feature set or a shard change: the values that were written, or an error, and no dead process."""

import functools
import hashlib
import logging
import multiprocessing
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from feature_sets import finish_features
from shard_sets import finish_shards
from test_features import make_clip
from test_shards import make_samples

from vidflow.errors import DamagedError, VidflowError
from vidflow.files import file_sha256
from vidflow.store.digests import check_once
from vidflow.store.features import FeatureReader
from vidflow.store.shards import read_shard, write_shard

RIGHT, REFUSED, WRONG = "right", "refused", "silently different"


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return other bytes: some bits flipped, some bytes set, a part cut off, left out, written twice or zeroed."""
    changed = bytearray(data)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([1, 4, 8, 64, 4096]))
    match rng.randrange(6):
        case 0:
            for _ in range(rng.choice([1, 1, 1, 2, 8])):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            changed[start:end] = rng.randbytes(end - start)
        case 2:
            del changed[start:]
        case 3:
            del changed[start:end]
        case 4:
            changed[start:start] = data[start:end]
        case 5:
            changed[start:end] = bytes(end - start)
    return bytes(changed)


def judge(folder: Path, read: Callable[[], str], wanted: str, *, seed: int, count: int) -> Iterator[str]:
    """Yield what became of each mutation of one of the folder's files, which is whole again after each."""
    rng = random.Random(seed)
    whole = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for _ in range(count):
        name = rng.choice(list(whole))
        changed = mutate(whole[name], rng)
        (folder / name).write_bytes(changed)
        try:
            yield RIGHT if read() == wanted else WRONG
        except VidflowError:
            yield REFUSED
        for path in folder.iterdir():
            if path.name not in whole:
                path.unlink()
        for other, data in whole.items():
            if other == name or not (folder / other).exists():
                (folder / other).write_bytes(data)


def digest_of_features(folder: Path) -> str:
    """Return the digest of every value that a reader gives."""
    reader, digest = FeatureReader(folder), hashlib.sha256()
    digest.update(repr((reader.metadata, reader.keys, reader.labels, reader.splits)).encode())
    for index in range(len(reader)):
        clip = reader[index]
        digest.update(repr((clip.key, clip.label, clip.split)).encode())
        for values in (clip.pts_seconds, clip.tokens, clip.prefix, clip.counts, clip.sizes, clip.assignment):
            digest.update(b"-" if values is None else repr((values.shape, values.dtype)).encode() + values.tobytes())
        digest.update(clip.annotations)
    return digest.hexdigest()


def make_features(folder: Path) -> Callable[[], str]:
    files = {
        "a.arrow": [make_clip(0), make_clip(1, merged=True)],
        "b.arrow": [make_clip(2, merged=True), make_clip(3)],
    }
    metadata = {"embed_dim": 8, "class_names": ["a", "b", "c"], "grid": [3, 3], "fingerprint": "0" * 16}
    finish_features(folder, files, metadata)
    return functools.partial(digest_of_features, folder)


def digest_of_shard(path: Path, sha256: str) -> str:
    """Return the digest of what extraction reads of a shard."""
    check_once(path, sha256)
    return hashlib.sha256(repr(list(read_shard(path))).encode()).hexdigest()


def make_shard(folder: Path) -> Callable[[], str]:
    path = folder / "a.tar"
    write_shard(path, make_samples())
    return functools.partial(digest_of_shard, path, file_sha256(path))


def count_outcomes(make: Callable[[Path], Callable[[], str]], folder: Path, seed: int, count: int) -> dict[str, int]:
    logging.disable()  # a line for each damaged JSON
    read = make(folder)
    outcomes = list(judge(folder, read, read(), seed=seed, count=count))
    return {kind: outcomes.count(kind) for kind in (RIGHT, REFUSED, WRONG)}


def run_apart(make: Callable[[Path], Callable[[], str]], folder: Path, *, seed: int, count: int) -> dict[str, int]:
    """Do it in a process of its own; one that dies is an error here (`BrokenProcessPool`)."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(count_outcomes, make, folder, seed, count).result()


@pytest.mark.parametrize("make", [make_features, make_shard], ids=["features", "shard"])
def test_three_hundred_changes_give_the_values_that_were_written_or_an_error(make, tmp_path):
    outcomes = run_apart(make, tmp_path, seed=0, count=300)
    assert outcomes[WRONG] == 0
    assert outcomes[REFUSED] > 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("make", [make_features, make_shard], ids=["features", "shard"])
def test_twenty_thousand_changes_give_the_values_that_were_written_or_an_error(make, tmp_path):
    outcomes = run_apart(make, tmp_path, seed=1, count=20_000)
    print(outcomes)
    assert outcomes[WRONG] == 0
    assert outcomes[REFUSED] > 7_000


def test_a_damaged_feature_file_is_named_and_found_before_the_first_clip_is_read(tmp_path):
    read = make_features(tmp_path)
    data = bytearray((tmp_path / "b.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "b.arrow").write_bytes(data)
    with pytest.raises(DamagedError, match=r"b\.arrow: its bytes are not those that were written"):
        FeatureReader(tmp_path).check_files()
    with pytest.raises(VidflowError, match="a file of it is gone or damaged; run `vidflow extract`"):
        read()


def test_a_damaged_shard_is_named_before_the_first_clip_is_read(tmp_path):
    clips = finish_shards(tmp_path, np.zeros((2, 1, 8, 8, 3), np.uint8), [0, 0], ["train"] * 2, clips_per_shard=1)
    data = bytearray((tmp_path / "shard-000001.tar").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "shard-000001.tar").write_bytes(data)
    with pytest.raises(DamagedError, match=r"shard-000001\.tar: its bytes are not those that were written"):
        clips.check_files()
