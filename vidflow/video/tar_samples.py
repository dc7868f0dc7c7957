"""Read which samples a WebDataset tar holds: where their videos are, and their texts.

The members of a sample have one name up to the first dot: 000000001.mp4, 000000001.json, 000000001.txt.

Source: webdataset's README, "The WebDataset Format".
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vidflow.errors import ConfigError, RejectReason, VideoError
from vidflow.files import open_regular, size_of
from vidflow.records import Reject
from vidflow.tar_members import TarMember, make_member
from vidflow.video.published import VIDEO_SUFFIXES

_TEXTS = ("json", "cls", "txt")
_MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """The members of a tar that share a name.

    Attributes:
        videos: Where its videos are; one, or none if fetching it failed.
        facts: The content of its `.json`, without nulls.
        texts: The texts of its `.cls` and `.txt`, without spaces around them.
        others: Endings of the members that are not used.
    """

    videos: list[TarMember] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def read_samples(tar: Path) -> tuple[list[Sample], list[Reject]]:
    """Return the samples of a tar in its order; a damaged tar gives those before the damage, and a reject.

    Raises:
        ConfigError: If a sample has more than one video.
    """
    samples: dict[str, Sample] = {}
    reason: RejectReason = "BadRow"
    problem = ""
    try:
        with open_regular(tar) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for key, ending, info in _list_files(archive, size_of(stream)):
                _add_member(samples.setdefault(key, Sample()), tar, ending, info, archive)
    except VideoError as error:
        reason, problem = error.reason, str(error)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        problem = (
            f"{tar}: not a whole, uncompressed tar ({error}), {len(samples)} samples could be read; fetch it again"
        )
    for sample in samples.values():
        if len(sample.videos) > 1:
            both = " and ".join(member.name for member in sample.videos[:2])
            raise ConfigError(f"{tar}: got the videos {both} in one sample; wanted one video per sample")
    rejects = [Reject(key="", path=str(tar), stage="manifest", reason=reason, message=problem)] if problem else []
    return list(samples.values()), rejects


def _list_files(archive: tarfile.TarFile, num_bytes: int) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield the sample's name, the ending and the header of each plain file.

    Raises:
        ReadError: If a file is not whole.
    """
    for info in archive:
        path = PurePosixPath(info.name)
        name, _, ending = path.name.partition(".")
        # Links would lead to other files, and sparse files are not in one piece. macOS hides files beside others.
        if info.isreg() and not info.issparse() and name and ending:
            if info.offset_data + info.size > num_bytes:
                raise tarfile.ReadError(f"{info.name} is cut off")
            yield str(path.with_name(name)), ending.lower(), info


def _add_member(sample: Sample, tar: Path, ending: str, info: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    if f".{ending.rpartition('.')[2]}" in VIDEO_SUFFIXES:
        sample.videos.append(make_member(tar, info))
        return
    if ending not in _TEXTS or info.size > _MAX_TEXT_BYTES:
        sample.others.append(ending)
        return
    opened = archive.extractfile(info)
    assert opened is not None  # a regular file
    data = opened.read()
    if ending == "json":
        sample.facts.update(_parse_facts(data))
    else:
        sample.texts[ending] = data.decode("utf-8", "replace").strip()


def _parse_facts(data: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        facts = None
    return {k: v for k, v in facts.items() if v is not None} if isinstance(facts, dict) else {"status": "damaged JSON"}
