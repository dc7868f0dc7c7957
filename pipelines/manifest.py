"""List the videos of any source, and write them as a manifest: `vidflow manifest SOURCE [--to FILE]`."""

import argparse
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from vidflow.config.paths import is_url
from vidflow.config.schema import Published, SourceFormat
from vidflow.errors import ConfigError
from vidflow.records import VideoItem
from vidflow.stages.reject_limit import first_of_each_reason, on_one_line
from vidflow.tar_members import find_member
from vidflow.video.listing import Listing
from vidflow.video.manifest import SUFFIXES, write_manifest
from vidflow.video.sources import read_source

_MAX_CLASSES = 10
_MAX_GAP_SECONDS = 1e6


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where videos are; `read` takes them."""
    add = parser.add_argument
    add(
        "source",
        type=Path,
        metavar="SOURCE",
        help="folder of videos, CSV, JSONL or Parquet manifest, WebDataset tar or folder of tars, mmaction2 list, or "
        "published annotations (with --format)",
    )
    names = get_args(SourceFormat)
    add("--format", choices=names, metavar="NAME", help=f"what SOURCE is, if that is not clear: {', '.join(names)}")
    add("--video-root", type=Path, metavar="DIR", help="folder of the videos, if they are not beside SOURCE")
    add("--split-seed", type=int, default=0, metavar="N", help="seed of the split, if SOURCE names no splits")
    add("--fold", type=int, choices=(1, 2, 3), default=1, help="published split of ucf101 and hmdb51")
    add("--epic-label", choices=("verb", "noun", "action"), default="action", help="classes of epic_kitchens_100")
    add("--box-gap-seconds", type=float, default=0.0, metavar="S", help="interpolate boxes of perception_test across S")


def read(parsed: argparse.Namespace) -> Listing:
    """Return the rows of the source that the arguments of `add_source` name.

    Raises:
        ConfigError: If it cannot be read.
    """
    if not 0 <= parsed.box_gap_seconds <= _MAX_GAP_SECONDS:
        raise ConfigError(f"--box-gap-seconds: got {parsed.box_gap_seconds}, wanted 0 to {_MAX_GAP_SECONDS:g}")
    published = Published(fold=parsed.fold, epic_label=parsed.epic_label, box_gap_seconds=parsed.box_gap_seconds)
    return read_source(
        parsed.source,
        format_name=parsed.format,
        video_root=parsed.video_root,
        split_seed=parsed.split_seed,
        published=published,
    )


def main(parsed: argparse.Namespace) -> None:
    """Say what a source holds, and write it as a manifest if `--to` names a file.

    Raises:
        ConfigError: If the source cannot be read or has no usable row, or the file exists or has a wrong name.
    """
    to: Path | None = parsed.to
    if to is not None:
        _check_new(to)
    listing = read(parsed)
    print("\n".join(describe(listing)))
    if not listing.items:
        raise ConfigError(f"{parsed.source}: no usable row")
    if to is None:
        words = shlex.join([str(parsed.source), *_options(parsed)])
        print(f"next: vidflow init {words}, or vidflow manifest {words} --to FILE.csv")
        return
    aside = to.with_name(f".{to.stem}.partial{to.suffix}")
    try:
        write_manifest(aside, listing.items)
        aside.replace(to)
    except OSError as error:
        raise ConfigError(f"--to: {to}: cannot be written ({error.strerror}); wanted a file in a folder") from error
    finally:
        aside.unlink(missing_ok=True)
    root = root_of(listing.items, to)
    print(f"wrote {to}")
    print(f"next: {shlex.join(['vidflow', 'init', str(to), *(['--video-root', str(root)] if root else [])])}")


def describe(listing: Listing) -> list[str]:
    """Return lines for the screen: how many videos of which splits and classes, how they were found, what is wrong."""
    items = listing.items
    splits = ", ".join(f"{count} {split}" for split, count in Counter(item.split for item in items).items())
    classes = Counter(item.label for item in items if item.label)
    annotated = sum(item.annotations is not None for item in items)
    lines = [
        f"{len(items)} videos ({splits}), {len(classes)} classes, {annotated} with annotations.",
        *listing.notes,
    ]
    if classes:
        most = ", ".join(f"{label} {count}" for label, count in classes.most_common(_MAX_CLASSES))
        lines.append(f"Videos per class: {most}{', ...' if len(classes) > _MAX_CLASSES else ''}.")
    if listing.rejects:
        lines += [f"{len(listing.rejects)} rows cannot be used:", *first_of_each_reason(listing.rejects)]
    return [on_one_line(line) for line in lines]  # names of classes and files may come from anywhere


def _options(parsed: argparse.Namespace) -> list[str]:
    """Return the options of `add_source` that were given."""
    given = {
        "--format": parsed.format,
        "--video-root": parsed.video_root,
        "--split-seed": parsed.split_seed or None,
        "--fold": parsed.fold if parsed.fold != Published().fold else None,
        "--epic-label": parsed.epic_label if parsed.epic_label != Published().epic_label else None,
        "--box-gap-seconds": parsed.box_gap_seconds or None,
    }
    return [word for option, value in given.items() if value is not None for word in (option, str(value))]


def root_of(items: Sequence[VideoItem], manifest: Path) -> Path | None:
    """Return the folder to name in `video.video_root` for a manifest of these rows; None if all are in its own."""
    files = [path for item in items for path in (item.path, item.annotations) if path is not None]
    folders = {(member.tar if (member := find_member(path)) else path).parent for path in files}
    if all(folder.is_relative_to(manifest.absolute().parent) for folder in folders):
        return None
    return Path(os.path.commonpath(folders))


def _check_new(to: Path) -> None:
    if is_url(str(to)) or to.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--to: got {to}; wanted a name that ends in {', '.join(SUFFIXES)}")
    if to.exists() or not to.absolute().parent.is_dir():
        raise ConfigError(f"--to: got {to}; wanted a new file in a folder that exists")


__all__ = ["add_source", "describe", "main", "read", "root_of"]
