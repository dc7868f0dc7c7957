"""Read, write and list objects. The only importer of pyarrow.fs.

Credentials come from the environment alone, as the libraries of the stores read them (`AWS_ACCESS_KEY_ID`,
`GOOGLE_APPLICATION_CREDENTIALS`, roles of the machine, ...). `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` names another
server than Amazon's. Failures that may pass, such as an answer that is cut, are tried again for `PATIENCE_SECONDS`.
"""

import base64
import contextlib
import functools
import hashlib
import io
import logging
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from vidflow.errors import VidflowError
from vidflow.objects.mirror import object_url, split_mirror

PATIENCE_SECONDS = 60.0
"""How long a request that fails is tried again."""
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0
_CONNECT_SECONDS = 5
# Without a byte for this long, a request is given up.
_SILENT_SECONDS = 20
_CHUNK_BYTES = 1 << 23
_FOR_EVER = re.compile(
    "ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|TOKEN|CREDENTIALS|code 40[1345]"
    "|PermissionDenied|Unauthenticated|Permanent error",
    re.IGNORECASE,
)
# So many objects of one folder are asked for by a listing of all that is in it.
_MANY = 32
_NUM_REQUESTS = 16
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class ObjectState(NamedTuple):
    """Size of an object in bytes, and when it was written, in whole seconds by the store's clock."""

    num_bytes: int
    modified_seconds: int


def object_state(path: Path) -> ObjectState | None:
    """Return the state of an object; None if there is none."""
    return _try("asked for", path, lambda files, key: _state(files.get_file_info(key)))


def object_states(paths: Collection[Path]) -> dict[Path, ObjectState | None]:
    """Return the states of many objects; those of a folder of which many are asked for by one listing."""
    folders = {folder for folder, number in Counter(path.parent for path in paths).items() if number >= _MANY}
    listed: dict[Path, ObjectState | None] = {}
    for folder in folders:
        listed |= list_objects(folder)
    single = [path for path in dict.fromkeys(paths) if path.parent not in folders]
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        return {
            **{path: listed.get(path) for path in paths if path.parent in folders},
            **dict(zip(single, pool.map(object_state, single), strict=True)),
        }


def list_objects(folder: Path, *, recursive: bool = False) -> dict[Path, ObjectState | None]:
    """Return what is in a folder: the state of each object by path, and None for each folder in it."""
    from pyarrow.fs import FileSelector

    cache, scheme, _ = split_mirror(folder)
    # pyarrow lists no folders of GCS, and asks its server for everything below a folder anyway.
    is_flat = scheme == "gs" and not recursive

    def call(files: Any, key: str) -> dict[Path, ObjectState | None]:
        found = files.get_file_info(FileSelector(key, allow_not_found=True, recursive=recursive or is_flat))
        listed = {cache / f"{scheme}:" / each.path: _state(each) for each in found}
        if not is_flat:
            return listed
        tops = {path: folder / path.relative_to(folder).parts[0] for path in listed}
        return {top: listed[path] if path == top else None for path, top in tops.items()}

    return _try("listed", folder, call)


def read_object(path: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> bytes | None:
    """Return the bytes of a small object; None if there is none."""
    checker = _Reading()

    def call(files: Any, key: str) -> bytes | None:
        data = io.BytesIO()
        try:
            checker.copy(files, key, data)
        except FileNotFoundError:
            return None
        return data.getvalue()

    return _try("read", path, call, patience_seconds)


def download(path: Path, state: ObjectState, to: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Write the bytes of an object into a local file."""
    checker = _Reading()

    def call(files: Any, key: str) -> None:
        with to.open("wb") as file:
            checker.copy(files, key, file)
        _check_size(to.stat().st_size, state.num_bytes)

    _try("read", path, call, patience_seconds)


def write_object(path: Path, source: Path | bytes, *, patience_seconds: float = PATIENCE_SECONDS) -> ObjectState:
    """Write the bytes of a local file as an object, and return its state after its size was compared."""

    def write(files: Any, key: str) -> ObjectState:
        with files.open_output_stream(key) as stream:
            if isinstance(source, bytes):
                stream.write(source)
                num_bytes = len(source)
            else:
                with source.open("rb") as file:
                    shutil.copyfileobj(file, stream, _CHUNK_BYTES)
                num_bytes = source.stat().st_size
        state = _state(files.get_file_info(key))
        _check_size(-1 if state is None else state.num_bytes, num_bytes)
        assert state is not None
        return state

    def call(files: Any, key: str) -> ObjectState:
        # pyarrow stores what it has even if its user fails. So in a thread, which no signal interrupts: Ctrl-C in the
        # middle would else put the first half of a file in the place of an object that is whole.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(write, files, key).result()

    return _try("written", path, call, patience_seconds)


def delete_object(path: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Delete an object; it may be missing."""

    def call(files: Any, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            files.delete_file(key)

    _try("deleted", path, call, patience_seconds)


def delete_folder(folder: Path) -> None:
    """Delete all objects of a folder, many at a time; it may be missing."""

    def call(files: Any, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            files.delete_dir(key)

    _try("deleted", folder, call)


def hash_object(path: Path) -> str:
    """Return the SHA-256 of the bytes that are in the store, whatever this node has a copy of.

    Raises:
        FileNotFoundError: If there is no such object.
    """
    checker = _Reading()

    def call(files: Any, key: str) -> str:
        hashed = _Hashing()
        checker.copy(files, key, hashed)
        return hashed.sha256.hexdigest()

    return _try("read", path, call)


def move_object(path: Path, to: Path) -> None:
    """Rename an object.

    Raises:
        FileNotFoundError: If there is none.
    """
    _try("renamed", path, lambda files, key: files.move(key, split_mirror(to)[2]))


class _Hashing:
    """Takes bytes and keeps only their digest."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.sha256.update(data)


class _Reading:
    """Reads an object and compares it with the digest that its server gives, as far as that is known.

    pyarrow fills up an answer that is too short, so its size says nothing. GCS gives the MD5 of an object. The ETag
    of an S3 object that was written in one part is its MD5, unless its bucket has keys of its own. There two attempts
    that ask for other pieces agree, which two short answers do not.
    """

    def __init__(self) -> None:
        self._digests: list[str] = []

    def copy(self, files: Any, key: str, to: "BinaryIO | _Hashing") -> None:
        """Write the bytes of an object.

        Raises:
            OSError: If they are not those of the digest.
        """
        digest, attempt = hashlib.md5(usedforsecurity=False), len(self._digests)
        with files.open_input_file(key) as stream:
            chunk_bytes = min(_CHUNK_BYTES >> attempt % 3, stream.size() // (attempt + 1) + 1)
            while data := stream.read(chunk_bytes):
                digest.update(data)
                to.write(data)
            facts = stream.metadata()
        wanted = facts.get("ETag", b"").decode().strip('"') or base64.b64decode(facts.get("md5Hash", b"")).hex()
        bucket, got = key.partition("/")[0], digest.hexdigest()
        if got == wanted or bucket in _other_tags or not re.fullmatch("[0-9a-f]{32}", wanted):
            return
        if got not in self._digests[-1:]:
            self._digests.append(got)
            raise OSError("the answer is cut or altered")
        _other_tags.add(bucket)


# Buckets whose ETags are not digests of the bytes.
_other_tags: set[str] = set()


def _check_size(got: int, wanted: int) -> None:
    if got != wanted:
        raise OSError(f"the store sent or kept {got} of {wanted} bytes")


def _state(info: Any) -> ObjectState | None:
    """Return the state in pyarrow's answer; None for a folder, or if there is nothing."""
    return ObjectState(info.size, info.mtime_ns // 10**9) if info.is_file else None


def _try(
    done: str, path: Path, call: Callable[[Any, str], Result], patience_seconds: float = PATIENCE_SECONDS
) -> Result:
    """Return what a request returns; repeat it with growing pauses while it fails for a reason that may pass.

    Raises:
        VidflowError: If it fails for ever or for too long.
        OSError: If there is no such object, or a local disk is full.
    """
    _, scheme, key = split_mirror(path)
    deadline, pause = time.monotonic() + patience_seconds, _FIRST_PAUSE_SECONDS
    while True:
        try:
            return call(_connect(scheme), key)
        except OSError as error:
            if error.errno is not None:  # of this machine, or there is no such object
                raise
            reason = _reason(error)
            if _FOR_EVER.search(reason) or time.monotonic() + pause > deadline:
                raise VidflowError(
                    f"{object_url(path)}: cannot be {done} ({reason}); check the object store, "
                    f"{'AWS_ENDPOINT_URL ' if scheme == 's3' else ''}and the credentials in the environment of "
                    f"{os.uname().nodename}; what is committed stays"
                ) from error
            if pause == _FIRST_PAUSE_SECONDS:
                log.warning(
                    "%s: cannot be %s (%s); trying for %.0f s", object_url(path), done, reason, patience_seconds
                )
            # At random, so that many workers do not come back at the same moment.
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _reason(error: OSError) -> str:
    """Return what went wrong on one line, without the request's number."""
    text = " ".join(str(error).split())
    text = text[text.find("AWS Error") :] if "AWS Error" in text else text
    return re.sub(r"; Details:.*| \(Request ID: [^)]*\)", "", text)[:300]


@functools.cache
def _connect(scheme: str) -> Any:
    """Return the file system of a scheme; one for the whole process, as it keeps connections open."""
    from pyarrow import fs

    if scheme == "gs":
        # An emulator knows no credentials.
        is_emulator = "CLOUD_STORAGE_EMULATOR_ENDPOINT" in os.environ
        return fs.GcsFileSystem(anonymous=is_emulator, retry_time_limit=timedelta(seconds=_SILENT_SECONDS))
    return fs.S3FileSystem(
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_SILENT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),  # it is tried again here
        allow_delayed_open=True,  # a small object is then one request
        allow_bucket_creation=False,
    )
