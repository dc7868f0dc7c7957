"""Which object a local path stands for: a function of the text alone."""

import os
import re
from pathlib import Path

_SCHEMES = ("s3", "gs")
_MARKS = tuple(f"/{scheme}:/" for scheme in _SCHEMES)
_MIRROR = re.compile(r"(/.*?)/(s3|gs):/(.+)", re.DOTALL)
# A mirror within a sentence.
_SHOWN = re.compile(r"/[^\s'\"`]*?/(s3|gs):/(?=[^/\s])")


def is_object_url(text: str) -> bool:
    """Return whether text is the address of an object, or of a prefix of objects."""
    return text.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def is_mirror(path: str | Path) -> bool:
    """Return whether a path stands for an object."""
    text = os.fspath(path)
    return text.startswith("/") and any(mark in text for mark in _MARKS)


def split_mirror(path: str | Path) -> tuple[Path, str, str]:
    """Return the cache, the scheme, and the bucket with the key, of a mirror."""
    found = _MIRROR.fullmatch(os.fspath(path))
    assert found is not None, f"{path} is no mirror"
    return Path(found[1]), found[2], found[3]


def object_url(path: str | Path) -> str:
    """Return the address of the object that a mirror stands for."""
    _, scheme, key = split_mirror(path)
    return f"{scheme}://{key}"


def mirror_path(url: str, cache: Path) -> Path:
    """Return the mirror of an object or prefix in a cache folder."""
    scheme, _, key = url.partition("://")
    return cache / f"{scheme}:" / key.strip("/")


def default_cache() -> Path:
    """Return the folder of mirrors in the user's cache folder; in the system's temporary one if there is no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vidflow" / "objects"
    except RuntimeError:
        return Path("/var/tmp/vidflow/objects")  # noqa: S108 - only copies of objects, each compared with its digest


def to_path(place: str | Path, cache: str | None = None) -> Path:
    """Return the path of a place that a user has named: a mirror for the address of an object, else the path itself."""
    text = os.fspath(place)
    return mirror_path(text, Path(cache) if cache else default_cache()) if is_object_url(text) else Path(place)


def show_urls(text: str) -> str:
    """Return text for people: with addresses of objects instead of the paths of their mirrors."""
    return _SHOWN.sub(r"\1://", text)
