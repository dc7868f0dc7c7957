"""Write and read clips as WebDataset tars with reproducible bytes. The only importer of webdataset."""

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidflow.store.layout import fetch, publish


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSample:
    """One clip of a shard.

    Attributes:
        key: The clip's content key.
        label: Class index, or -1.
        images: Encoded frames in order.
        image_format: `jpg` or `png`.
        metadata: Label name, split, `pts_seconds`, source, digest, codec, fps, size, decoder.
        annotations: Serialized `.npz` with dense ground truth, or empty.
    """

    key: str
    label: int
    images: list[bytes]
    image_format: str
    metadata: dict[str, Any] = field(default_factory=dict)
    annotations: bytes = b""


def write_shard(path: Path, samples: Iterable[ShardSample]) -> dict[str, str]:
    """Publish a tar with the samples in the given order; return the index of its members for `read_members`.

    Members have no time and a fixed owner, so the bytes depend on the samples alone. The index allows random
    access by `pread` or an HTTP range. It is one line of text for each clip, because the driver reads those of all
    shards: the offset of the clip's first header, then name and size of each member.
    """
    import webdataset as wds  # here, because it imports torch: seconds and 450 MiB that who plans shards does not need

    index: dict[str, str] = {}
    fixed = {"mtime": 0, "user": "vidflow", "group": "vidflow", "mode": 0o644}
    with publish(path) as aside, aside.open("wb") as stream, wds.TarWriter(stream, encoder=False, **fixed) as writer:
        writer.tarstream.format = tarfile.USTAR_FORMAT  # faster: tarfile does not try longer header forms
        for sample in samples:
            members = _make_members(sample)
            start = writer.tarstream.offset
            writer.write(members)
            names = sorted(members.keys() - {"__key__"})  # as the writer sorts them
            index[sample.key] = " ".join([str(start), *(f"{name}:{len(members[name])}" for name in names)])
            end = start + sum(_in_blocks(len(members[name])) for name in names)
            assert end == writer.tarstream.offset, f"{sample.key}: a header of more than one block"
    return index


def read_members(index: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, int]]]:
    """Return key of each clip -> name of each member -> offset and size of its bytes.

    Args:
        index: What `write_shard` returned, or [offset, size] of each `KEY.NAME`, as older shards have it.
    """
    clips: dict[str, dict[str, tuple[int, int]]] = {}
    for name, value in index.items():
        if isinstance(value, str):
            clips[name] = _parse_line(value)
        else:
            key, _, member = name.partition(".")
            clips.setdefault(key, {})[member] = (value[0], value[1])
    return clips


def _parse_line(line: str) -> dict[str, tuple[int, int]]:
    start, *members = line.split(" ")
    offset, spans = int(start), {}
    for name, size in (member.split(":") for member in members):
        spans[name] = (offset + tarfile.BLOCKSIZE, int(size))
        offset += _in_blocks(int(size))
    return spans


def _in_blocks(size: int) -> int:
    """Return the bytes that a member takes: a header of one block, and its own bytes padded to whole blocks."""
    return tarfile.BLOCKSIZE - (-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def read_shard(path: Path) -> Iterator[ShardSample]:
    """Yield the samples of a tar in its order."""
    import webdataset as wds  # here, as in `write_shard`

    for members in wds.WebDataset(str(fetch(path)), shardshuffle=False, empty_check=False):
        images = sorted(name for name in members if name[0].isdigit())
        yield ShardSample(
            key=members["__key__"],
            label=int(members["cls"]),
            images=[members[name] for name in images],
            image_format=images[0].split(".")[-1],
            metadata=json.loads(members["json"]),
            annotations=members.get("annotations.npz", b""),
        )


def read_images(path: Path, members: Mapping[str, Any], key: str) -> list[bytes]:
    """Return the encoded frames of one clip; read only their bytes, by the shard's index of members."""
    spans = _parse_line(members[key]) if key in members else read_members(members)[key]
    with fetch(path).open("rb") as stream:
        return [
            os.pread(stream.fileno(), size, offset)
            for name, (offset, size) in sorted(spans.items())
            if name.split(".")[0].isdigit()
        ]


def _make_members(sample: ShardSample) -> dict[str, Any]:
    members: dict[str, Any] = {"__key__": sample.key}
    width = max(2, len(str(len(sample.images) - 1)))  # so that names sort like frames
    for index, image in enumerate(sample.images):
        members[f"{index:0{width}d}.{sample.image_format}"] = image
    members["cls"] = str(sample.label).encode()
    members["json"] = json.dumps(sample.metadata, sort_keys=True).encode()
    if sample.annotations:
        members["annotations.npz"] = sample.annotations
    return members
