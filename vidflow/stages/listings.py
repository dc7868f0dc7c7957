"""What the JSON files below a root say of other files: which should exist, with which size and digest."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vidflow.config.fingerprints import fingerprint
from vidflow.records import StageManifest
from vidflow.stages.root_files import KEY
from vidflow.stages.trained import RESULT_FIELDS, TRIALS
from vidflow.store.layout import STAGE_MANIFEST, TRIAL_RESULT, FileEntry, read_sealed
from vidflow.store.rows import REPLACED

CHANGED = "its bytes are not those that were written"
_ENTRY = {field.name for field in fields(FileEntry)}
_MANIFEST = {field.name for field in fields(StageManifest)}
_MANY = ("videos", "shards", "features", "sweeps", "reports")
"""Stages whose manifest is a `StageManifest`."""


class OtherVersionError(ValueError):
    """Another version of vidflow wrote the file, so it counts as missing."""


class WrongFolderError(ValueError):
    """The files in this folder were made with other settings than those that its name stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one JSON file says of another file.

    Attributes:
        path: The other file.
        by: The JSON file.
        num_bytes: Size that it should have; None if that is not said.
        digests: Digests of which it should have one; empty if none is said.
        is_own: Whether the JSON file describes this file alone.
    """

    path: Path
    by: Path
    num_bytes: int | None = None
    digests: tuple[str, ...] = ()
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """What a JSON file says; its values themselves are not kept, as an index of members is large.

    Attributes:
        claims: What it says of other files.
        made_from: Folders below the root that features were made from.
    """

    claims: tuple[Claim, ...]
    made_from: tuple[str, ...]


def read_list(path: Path) -> Listed | Exception:
    """Read a JSON file; return why it cannot be trusted if so."""
    try:
        if path.is_symlink():
            raise ValueError("a link, which vidflow never makes")
        value = read_sealed(path)
        if value is None:
            raise ValueError(CHANGED)
        return Listed(tuple(_list_claims(path, value)), tuple(_made_from(path, value)))
    except (OSError, ValueError) as error:
        return error


def _made_from(path: Path, value: dict[str, Any]) -> Iterator[str]:
    """Yield the folders that features were made from, by what their manifest says."""
    if path.name == STAGE_MANIFEST and path.parent.parent.name == "features":
        for stage, name in (("shards", "shards"), ("features", "dense")):
            key = value["settings"].get(name)
            if isinstance(key, str) and KEY.fullmatch(key):
                yield f"{stage}/{key}"


def _list_claims(path: Path, value: dict[str, Any]) -> Iterator[Claim]:
    """Yield what a sealed JSON file says of other files.

    Args:
        path: The JSON file, `ROOT/STAGE/KEY/NAME` or `ROOT/index/NAME`.
        value: What it holds.

    Raises:
        ValueError: If it is not what vidflow writes there; the message says what is wrong.
    """
    stage = path.parent.parent.name
    try:
        if path.name == STAGE_MANIFEST:
            yield from _of_manifest(path, value, stage)
        elif path.name == TRIAL_RESULT and stage == TRIALS:
            if value.keys() != RESULT_FIELDS:
                raise OtherVersionError("another version of vidflow wrote it")
            yield from (_claim(path, row) for row in value["files"])
        elif value.keys() == _ENTRY:
            yield _of_entry(path, value)
        elif REPLACED in value:
            (row,) = value["files"]
            yield _own(path, row, value[REPLACED])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not what vidflow writes ({type(error).__name__}: {error})") from error


def _of_manifest(path: Path, value: dict[str, Any], stage: str) -> Iterator[Claim]:
    if stage in _MANY and value.keys() != _MANIFEST:
        raise OtherVersionError("another version of vidflow wrote it")
    yield from (_claim(path, row) for row in value["files"])
    if stage not in _MANY:
        return
    yield from (_claim(path, row) for row in value["entries"])
    for table in value["tables"]:
        yield Claim(path=path.parent / _plain(table), by=path)
        yield Claim(path=path.parent / f"{table}.json", by=path)
    settings, key = value["settings"], path.parent.name
    if (settings and fingerprint(settings) != key) or value["fingerprint"] != key:
        raise WrongFolderError(f"it was made with the settings of another folder ({value['fingerprint']})")
    if stage == "sweeps":
        trials = path.parent.parent.parent / TRIALS
        for trial in value["details"]["trials"]:
            if not KEY.fullmatch(trial):
                raise ValueError(f"it names the trial {trial!r}, which is no key")
            yield Claim(path=trials / trial / TRIAL_RESULT, by=path)


def _of_entry(path: Path, value: dict[str, Any]) -> Claim:
    """Return what the entry beside a file says; an evaluation's names the file by its folder too."""
    named = value["file"]
    prefix = f"{path.parent.name}/"
    if path.parent.parent.name == "evaluations" and named.startswith(prefix):
        named = named.removeprefix(prefix)
    return _own(path, {**value, "file": named})


def _own(path: Path, row: dict[str, Any], *others: str | None) -> Claim:
    """Return what a JSON file says of the file that it is named after."""
    if f"{row['file']}.json" != path.name:
        raise ValueError(f"it describes {row['file']!r}, wanted {path.name.removesuffix('.json')!r}")
    digests = tuple(digest for digest in (row["sha256"], *others) if digest is not None)
    # The table before a killed writer's has another size, so the size says nothing beside two digests.
    num_bytes = None if len(digests) > 1 else row["num_bytes"]
    return Claim(path=path.with_name(row["file"]), by=path, num_bytes=num_bytes, digests=digests, is_own=True)


def _claim(path: Path, row: dict[str, Any]) -> Claim:
    digests = (row["sha256"],) if "sha256" in row else ()
    return Claim(path=path.parent / _plain(row["file"]), by=path, num_bytes=row["num_bytes"], digests=digests)


def _plain(name: str) -> str:
    """Return a name of a file in the same folder.

    Raises:
        ValueError: If it leads elsewhere.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"it names {name!r}, which is not a file in its folder")
    return name


__all__ = ["CHANGED", "Claim", "Listed", "OtherVersionError", "WrongFolderError", "read_list"]
