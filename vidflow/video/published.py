"""Helpers for adapters of published data sets: find videos by name, report files in another format."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidflow.errors import ConfigError

VIDEO_SUFFIXES = {
    *{".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv"},
    *{".webm", ".wmv"},
}
"""How names of video files end, in small letters."""

# Publishers' names of the splits, and the names used here.
SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
}


class Videos:
    """The videos below a folder, by name without suffix."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; wanted the one that holds the videos")
        self._folder = folder.absolute()
        files = sorted(self._folder.rglob("*"), reverse=True)  # so that the first of two namesakes wins
        self._paths = {path.stem: path for path in files if path.suffix.lower() in VIDEO_SUFFIXES}

    def find(self, name: str) -> Path:
        """Return the path of a video, or the path at which it is expected if it is missing."""
        return self._paths.get(Path(name).stem, self._folder / name)


@contextmanager
def published_format(file: Path, part: str = "") -> Iterator[None]:
    """Turn the errors of reading a published file into one message.

    Args:
        file: The file.
        part: The place in it, if known.

    Raises:
        ConfigError: If the file is missing or in another format.
    """
    where = f"{file}, {part}" if part else str(file)
    if file.exists() and not file.is_file():  # reading a pipe would block
        raise ConfigError(f"{file}: not a regular file; wanted the published file under its published name")
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; wanted the published file under its published name") from error
    except (
        AttributeError,
        IndexError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
        csv.Error,
    ) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{where}: not in its published format: {problem}; get the publisher's file") from error
