"""Write and read clips as WebDataset tars with reproducible bytes. The only importer of webdataset."""

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import webdataset as wds

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


def write_shard(path: Path, samples: Iterable[ShardSample]) -> dict[str, list[int]]:
    """Publish a tar with the samples in the given order; return the [offset, size] of each member's bytes.

    Members have no time and a fixed owner, so the bytes depend on the samples alone. The index allows random
    access by `pread` or an HTTP range.
    """
    index: dict[str, list[int]] = {}
    fixed = {"mtime": 0, "user": "vidflow", "group": "vidflow", "mode": 0o644}
    with publish(path) as aside, aside.open("wb") as stream, wds.TarWriter(stream, encoder=False, **fixed) as writer:
        writer.tarstream.format = tarfile.USTAR_FORMAT  # faster: tarfile does not try longer header forms
        for sample in samples:
            members = _make_members(sample)
            offset = writer.tarstream.offset
            writer.write(members)
            # The writer sorts members; each follows a header of one block and is padded to a whole block.
            for name in sorted(members.keys() - {"__key__"}):
                index[f"{sample.key}.{name}"] = [offset + tarfile.BLOCKSIZE, len(members[name])]
                offset += tarfile.BLOCKSIZE - (-len(members[name]) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            assert offset == writer.tarstream.offset, f"{sample.key}: a header of more than one block"
    return index


def read_shard(path: Path) -> Iterator[ShardSample]:
    """Yield the samples of a tar in its order."""
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


def read_images(path: Path, members: Mapping[str, Sequence[int]], key: str) -> list[bytes]:
    """Return the encoded frames of one clip; read only their bytes, by the shard's member index."""
    names = sorted(name for name in members if name.startswith(f"{key}.") and name.split(".")[1].isdigit())
    with fetch(path).open("rb") as stream:
        return [os.pread(stream.fileno(), size, offset) for offset, size in (members[name] for name in names)]


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
