"""Read the rows of any source of videos: a folder, a table, lists, tars, or a published data set."""

from collections.abc import Collection
from pathlib import Path
from typing import assert_never

from vidflow.config.schema import Published, SourceFormat
from vidflow.errors import ConfigError
from vidflow.objects import is_mirror
from vidflow.video.datasets import adapt
from vidflow.video.folder import FOLDER_RULE, is_video, list_folder, name_others
from vidflow.video.listing import Listing
from vidflow.video.lists import list_mmaction
from vidflow.video.manifest import SUFFIXES, read_manifest
from vidflow.video.splits import VALIDATION_RULE
from vidflow.video.tars import list_tars

_KINDS = (
    "wanted a folder of videos, a .csv, .jsonl or .parquet manifest, a .txt list of mmaction2, a .tar or a folder of "
    "them, or the published annotations of a data set with its name in video.format (--format)"
)


def read_source(
    source: Path,
    *,
    format_name: SourceFormat | None = None,
    video_root: Path | None = None,
    split_names: Collection[str] = ("train", "val"),
    split_seed: int = 0,
    published: Published | None = None,
    tracks: Path | None = None,
) -> Listing:
    """Return the rows of a source.

    Args:
        source: File or folder.
        format_name: What it is; None: what its name and content show.
        video_root: For a manifest, a second folder that its paths may point into; for lists and published data sets,
            the folder of the videos, by default that of the source.
        split_names: Splits that trials use.
        split_seed: Seed of `VALIDATION_RULE`.
        published: How a published data set is read; None: the defaults.
        tracks: Folder for the boxes and points of Perception Test; None: the folder `tracks` in the source.

    Raises:
        ConfigError: If it cannot be read, or can be read in more than one way.
    """
    source = source.absolute()
    video_root = video_root.absolute() if video_root else None
    match format_name or _recognize(source):
        case "manifest":
            rows, rejects = read_manifest(source, video_root=video_root)
            return Listing(items=rows, rejects=rejects)
        case "folder":
            items, has_splits = list_folder(source, split_names=split_names, seed=split_seed)
            rule = "Split by the sub-folders." if has_splits else f"Split by names: {VALIDATION_RULE}."
            others = name_others(source, items)
            return Listing(items=items, notes=[f"{FOLDER_RULE[0].upper()}{FOLDER_RULE[1:]}.", rule, *others])
        case "webdataset":
            return list_tars(source, _find_tars(source), split_names=split_names, seed=split_seed)
        case "mmaction":
            listing = list_mmaction(source, video_root=video_root, split_names=split_names, seed=split_seed)
        case "kinetics" | "ssv2" | "epic_kitchens_100" | "ucf101" | "hmdb51" | "perception_test" as dataset:
            published = published or Published()
            items = adapt(
                dataset,
                annotations=source,
                videos=video_root or (source if source.is_dir() else source.parent),
                fold=published.fold,
                epic_label=published.epic_label,
                box_gap_seconds=published.box_gap_seconds,
                tracks=tracks,
            )
            listing = Listing(items=items, notes=[f"Read as the published annotations of {dataset}."])
        case other:
            assert_never(other)
    _check_any_exists(source, listing)
    return listing


def find_manifest(source: Path, format_name: SourceFormat | None) -> Path | None:
    """Return the path of a source that is a CSV, JSONL or Parquet manifest; None for other kinds."""
    source = source.absolute()
    if format_name not in (None, "manifest") or source.suffix.lower() not in SUFFIXES:
        return None
    return source if is_mirror(source) or source.is_file() else None


def _recognize(source: Path) -> SourceFormat:
    """Return what a source is by its name and content.

    Raises:
        ConfigError: If it may be more than one thing, or nothing that can be read.
    """
    if source.is_dir():
        return _recognize_folder(source)
    if not source.exists() and not is_mirror(source):
        raise ConfigError(f"{source}: no such file or folder; {_KINDS}")
    match source.suffix.lower():
        case ".csv" | ".jsonl" | ".parquet":
            return "manifest"
        case ".tar":
            return "webdataset"
        case ".txt":
            return "mmaction"
        case ".gz" | ".tgz" | ".zst" | ".bz2" | ".xz" | ".zip":
            raise ConfigError(f"{source}: got a compressed archive, which cannot be read in place; unpack it to a .tar")
        case _ if is_video(source):
            raise ConfigError(f"{source}: got one video; wanted the folder that holds the folders of the classes")
        case _:
            raise ConfigError(f"{source}: got a file of another kind; {_KINDS}")


def _recognize_folder(folder: Path) -> SourceFormat:
    video = next((path for path in folder.rglob("*") if is_video(path)), None)
    tar = next((path for path in folder.rglob("*.tar") if path.is_file()), None)
    # video2dataset writes a table beside each tar, with the same name.
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    table = next((path for path in tables if not path.with_suffix(".tar").exists()), None)
    found = {"videos": video, "tars": tar, "a table": table}
    names = [f"{kind} ({path.relative_to(folder)})" for kind, path in found.items() if path is not None]
    if len(names) > 1:
        raise ConfigError(
            f"{folder}: got {' and '.join(names)}; it is not clear which to use: name the file itself, or say what the "
            "folder is by video.format (--format) = folder, webdataset or the name of a published data set"
        )
    if video is not None:
        return "folder"
    if tar is not None:
        return "webdataset"
    raise ConfigError(f"{folder}: no videos in it; {_KINDS}")


def _find_tars(source: Path) -> list[Path]:
    tars = [source] if not source.is_dir() else sorted(path for path in source.rglob("*.tar") if path.is_file())
    if not tars:
        raise ConfigError(f"{source}: no *.tar in it")
    return tars


def _check_any_exists(source: Path, listing: Listing) -> None:
    """Refuse a list none of whose videos exists, because then its videos are elsewhere."""
    if listing.items and not any(item.path.exists() for item in listing.items):
        raise ConfigError(
            f"{source}: none of its {len(listing.items)} videos exists, such as {listing.items[0].path}; name the "
            "folder of the videos in video.video_root (--video-root)"
        )


__all__ = ["find_manifest", "read_source"]
