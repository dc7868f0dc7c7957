"""What every adapter of a published data set needs: its videos by name, and a message where a file is another one."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidflow.errors import ConfigError

VIDEO_SUFFIXES = {".avi", ".mkv", ".mov", ".mp4", ".webm"}

# What publishers call the split that the field reports results on and that has labels.
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
        """Return where a video lies, or would lie if it were there."""
        return self._paths.get(Path(name).stem, self._folder / name)


@contextmanager
def published_format(file: Path, part: str = "") -> Iterator[None]:
    """Turn what goes wrong with reading a published file into a message for whoever has another one.

    Args:
        file: The file.
        part: The place in it, where that is known.

    Raises:
        ConfigError: Instead of the errors that files which are missing or in another format raise.
    """
    where = f"{file}, {part}" if part else str(file)
    if file.exists() and not file.is_file():  # a pipe would wait for ever
        raise ConfigError(f"{file}: no regular file; wanted the file under the name it was published with")
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; wanted the file under the name it was published with") from error
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
