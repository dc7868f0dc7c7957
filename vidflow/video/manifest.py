"""Read and write manifests: tables of the videos, or parts of videos, that an experiment uses."""

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, assert_never

import pyarrow as pa
import pyarrow.parquet as pq

from vidflow.errors import ConfigError, RowReason, VideoError
from vidflow.files import open_regular
from vidflow.objects import is_mirror, is_object_url, mirror_path
from vidflow.objects.mirror import default_cache, split_mirror
from vidflow.records import Reject, VideoItem
from vidflow.video.video_rows import Row, VideoRows

_VERSION = 1
"""Increase it by hand when a change of this code reads other rows, so that none are taken from the last time."""
REQUIRED_COLUMNS = ("path", "label", "split")
SUFFIXES = (".csv", ".jsonl", ".parquet")
OPTIONAL_COLUMNS = ("start_seconds", "end_seconds", "annotations", "sha256")

# The csv module stores cells beyond the last column under this key; no column has this name.
_SURPLUS = None

# Linux opens no longer path. A longer cell means that the file is broken.
_MAX_CHARACTERS = 4096
_MAX_SHOWN = 100

_Row = Mapping[Any, Any]


class _BadRowError(Exception):
    """A row cannot be used. The arguments are the reject reason and the problem."""

    def __init__(self, reason: RowReason, problem: str) -> None:
        """Keep the reason beside what is wrong."""
        super().__init__(problem)
        self.reason = reason


def read_manifest(path: Path, *, video_root: Path | None = None) -> tuple[VideoRows, list[Reject]]:
    """Read a CSV, JSON Lines or Parquet manifest.

    Relative paths start at the manifest's folder. No path may leave that folder or `video_root`, so a
    manifest from elsewhere cannot name other files on the disk. Symbolic links are followed anywhere.
    Videos are not opened; scanning reports missing and damaged ones later.
    Columns other than `path, label, split, start_seconds, end_seconds, annotations, sha256` are ignored.

    Args:
        path: The manifest; its suffix is `.csv`, `.jsonl` or `.parquet`.
        video_root: A second folder that paths may point into.

    Returns:
        The usable rows in order, and a reject (`BadRow` or `PathEscapes`) for every other row.

    Raises:
        ConfigError: If the manifest cannot be read, lacks a column or has no rows.
    """
    roots = [path.parent, *([video_root] if video_root else [])]
    items, rejects = parse_rows(path, _read_rows(path), roots)
    if not items and not rejects:
        raise ConfigError(f"{path}: got no rows; wanted one per video, with the columns {', '.join(REQUIRED_COLUMNS)}")
    return items, rejects


def manifest_digest(path: Path, video_root: Path | None) -> str:
    """Return the hash of all that the rows of a manifest depend on; empty if it cannot be read."""
    try:
        with open_regular(path) as file:
            content = hashlib.sha256()
            while block := file.read(1 << 20):
                content.update(block)
    except (VideoError, OSError):
        return ""
    folders = [os.path.abspath(each) for each in (path, video_root) if each is not None]
    return hashlib.sha256(
        json.dumps([_VERSION, content.hexdigest(), path.suffix, str(path), *folders]).encode()
    ).hexdigest()[:16]


def parse_rows(path: Path, rows: Iterable[_Row | None], roots: Sequence[Path]) -> tuple[VideoRows, list[Reject]]:
    """Check rows, each a mapping with the columns of a manifest.

    Args:
        path: The file that they come from.
        rows: The rows in order; None for a line that cannot be parsed.
        roots: Folders that paths may point into; relative paths start at the first.

    Returns:
        The usable rows in order, and a reject for every other row.

    Raises:
        ConfigError: If the name of a file or folder is not UTF-8.
    """
    folders = [os.path.abspath(root) for root in roots]
    for named in (os.path.abspath(path), *folders):
        if _printable(named) != named:
            raise ConfigError(f"{_printable(named)}: the name of this file or folder is not UTF-8; rename it")
    rejects: list[Reject] = []

    def usable() -> Iterator[Row]:
        for number, row in enumerate(rows, 1):
            try:
                yield _parse_row(row, folders)
            except _BadRowError as error:
                given = row.get("path") if isinstance(row, Mapping) else None
                name = _printable(given[:_MAX_CHARACTERS]) if isinstance(given, str) else ""
                message = f"{path}, row {number}: {error}"
                rejects.append(Reject(key="", path=name, stage="manifest", reason=error.reason, message=message))

    return VideoRows.collect(usable()), rejects


def write_manifest(path: Path, items: Sequence[VideoItem]) -> None:
    """Write a manifest that `read_manifest` reads back; paths below its folder become relative.

    Args:
        path: File to write, ending in `.csv`, `.jsonl` or `.parquet`; its folder exists.
        items: Rows.

    Raises:
        ConfigError: If the suffix is none of these.
    """
    folder = Path(os.path.abspath(path)).parent
    rows = [_as_row(item, folder) for item in items]
    used = [*REQUIRED_COLUMNS, *(name for name in OPTIONAL_COLUMNS if any(row[name] is not None for row in rows))]
    rows = [{name: row[name] for name in used} for row in rows]
    match _format_of(path):
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, used, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        case ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        case ".parquet":
            kinds = {name: pa.float64() if name.endswith("seconds") else pa.string() for name in used}
            pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(kinds)), path)
        case other:
            assert_never(other)


def _read_rows(path: Path) -> Iterator[_Row | None]:
    """Yield the rows of a manifest; None for a line that cannot be parsed.

    Raises:
        ConfigError: If the file cannot be read or lacks a column.
    """
    try:
        match _format_of(path):
            case ".csv":
                with _open_text(path, newline="") as file:
                    reader = csv.DictReader(file, restkey=_SURPLUS, strict=True)
                    _require_columns(path, reader.fieldnames or [])
                    yield from reader
            case ".jsonl":
                names: dict[str, None] = {}
                with _open_text(path, newline="\n") as file:
                    for line in file:
                        if line.strip():
                            row = _parse_line(line)
                            names.update(dict.fromkeys(row or ()))
                            yield row
                _require_columns(path, list(names))
            case ".parquet":
                with open_regular(path) as stream, pq.ParquetFile(stream) as table:
                    schema = table.schema_arrow
                    _require_columns(path, schema.names)
                    _require_types(path, schema)
                    # Only these columns: others may hold types that Python cannot represent.
                    wanted = [name for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if name in schema.names]
                    for batch in table.iter_batches(columns=wanted):
                        yield from batch.to_pylist()
            case other:
                assert_never(other)
    except VideoError as error:
        raise ConfigError(str(error)) from error
    except (OSError, UnicodeError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(
            f"{path}: cannot be read as a manifest ({error}); wanted CSV, JSON Lines or Parquet"
        ) from error


def _open_text(path: Path, *, newline: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline=newline)


def _format_of(path: Path) -> Literal[".csv", ".jsonl", ".parquet"]:
    match path.suffix.lower():
        case ".csv" | ".jsonl" | ".parquet" as suffix:
            return suffix
        case suffix:
            raise ConfigError(f"{path}: got a manifest named *{suffix}; wanted *.csv, *.jsonl or *.parquet")


def _require_columns(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in REQUIRED_COLUMNS if name not in names]
    if missing:
        got = ", ".join(_printable(name[:_MAX_SHOWN]) for name in names) or "none"
        raise ConfigError(
            f"{path}: no column {', '.join(missing)}; got {got}; wanted {', '.join(REQUIRED_COLUMNS)} "
            f"and, where needed, {', '.join(OPTIONAL_COLUMNS)}; for a published list, name its format in video.format"
        )
    twice = [name for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{path}: got the column {', '.join(twice)} more than once; leave one of each")


def _require_types(path: Path, schema: pa.Schema) -> None:
    """Check the columns of a Parquet file that are read."""
    for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        usable = _is_text(value) or pa.types.is_integer(value) or pa.types.is_null(value)
        if name.endswith("seconds"):
            usable |= pa.types.is_floating(value) or pa.types.is_decimal(value)
        if not usable:
            wanted = "seconds as numbers" if name.endswith("seconds") else "text"
            raise ConfigError(f"{path}: got the column {name} with values of type {kind}; wanted {wanted}")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _parse_line(line: str) -> _Row | None:
    try:
        row = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated_names)
    except (ValueError, RecursionError):  # RecursionError: deeply nested brackets
        return None
    return row if isinstance(row, dict) else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; refuse a repeated name, because it is not clear which value is meant."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name is given twice")
    return row


def _parse_row(row: _Row | None, roots: Sequence[str]) -> Row:
    if row is None:
        raise _BadRowError("BadRow", "got a line that is not a JSON object, or that repeats a name; correct it")
    if _SURPLUS in row:
        raise _BadRowError("BadRow", f"got {len(row[_SURPLUS])} more cells than columns; quote cells that hold commas")
    start, end = _parse_seconds(row, "start_seconds"), _parse_seconds(row, "end_seconds")
    if end is not None and end <= (start or 0.0):
        raise _BadRowError("BadRow", f"got the span {start or 0.0} to {end} s; wanted the end after the start")
    annotations = row.get("annotations")
    return (
        _resolve(_parse_text(row, "path"), roots),
        _parse_name(row, "label", may_be_empty=True),
        _parse_name(row, "split"),
        start,
        end,
        _resolve(_parse_text(row, "annotations"), roots) if annotations else None,
        _parse_digest(row),
    )


def _parse_digest(row: _Row) -> str | None:
    value = row.get("sha256")
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise _BadRowError("BadRow", f"got sha256 = {_show_value(value)}; wanted 64 hex digits, or nothing")
    return value.lower()


def _parse_name(row: _Row, name: str, *, may_be_empty: bool = False) -> str:
    """Return a label or split. Outer spaces are refused: they would make another class or split that looks the same."""
    value = _parse_text(row, name, may_be_empty=may_be_empty)
    if value != value.strip():
        raise _BadRowError("BadRow", f"got {name} = {_show_value(value)}; wanted it without spaces before or after")
    return value


def _parse_text(row: _Row, name: str, *, may_be_empty: bool = False) -> str:
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # a class number
    if not isinstance(value, str) or not (value.strip() or may_be_empty) or "\0" in value:
        raise _BadRowError("BadRow", f"got {name} = {_show_value(value)}; wanted text")
    if len(value) > _MAX_CHARACTERS:
        raise _BadRowError("BadRow", f"got {name} of {len(value)} characters; wanted at most {_MAX_CHARACTERS}")
    if _printable(value) != value:
        raise _BadRowError("BadRow", f"got {name} = {_show_value(value)}; wanted text that UTF-8 can encode")
    return value


def _parse_seconds(row: _Row, name: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.inf
    if math.isnan(seconds) and not isinstance(value, str):
        return None  # pandas writes NaN to Parquet files for a missing number
    if not math.isfinite(seconds) or isinstance(value, bool):
        raise _BadRowError("BadRow", f"got {name} = {_show_value(value)}; wanted seconds, or nothing")
    return seconds


def _show_value(value: Any) -> str:
    """Return a value as text for a message, cut because a cell may hold megabytes."""
    text = repr(value) if not isinstance(value, str) else repr(value[:_MAX_SHOWN])
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _printable(text: str) -> str:
    """Replace what UTF-8 cannot encode, such as half a surrogate pair, by its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _resolve(named: str, roots: Sequence[str]) -> str:
    """Return the absolute path of a file that a manifest names, without `..`; relative paths start at `roots[0]`.

    Symbolic links are not resolved.
    """
    if is_object_url(named):
        caches = [split_mirror(root)[0] for root in roots if is_mirror(root)] or [default_cache()]
        path = os.path.abspath(mirror_path(named, caches[0]))
    else:
        path = os.path.abspath(os.path.join(roots[0], named))
    if not any(_is_below(path, root) for root in roots):
        folder = os.path.dirname(path)
        raise _BadRowError(
            "PathEscapes",
            f"got {_show_value(named)}, which is outside {' and '.join(roots)}; "
            f"to allow it, set video.video_root={folder}, or to a folder above that",
        )
    return path


def _is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder, or is below it; as text, because `Path` is slow for a million rows."""
    if folder == "/":
        return not path.startswith("//")  # which is another root
    return path == folder or path.startswith(f"{folder}/")


def _as_row(item: VideoItem, folder: Path) -> dict[str, str | float | None]:
    def name(path: Path) -> str:
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    return {
        "path": name(item.path),
        "label": item.label,
        "split": item.split,
        "start_seconds": item.start_seconds,
        "end_seconds": item.end_seconds,
        "annotations": name(item.annotations) if item.annotations else None,
        "sha256": item.sha256,
    }
