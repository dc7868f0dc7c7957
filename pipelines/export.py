"""Write a feature set for other programs: `vidflow export FEATURES|CONFIG.yaml --to FOLDER`.

Axes: T frames, K tapped depths, N patch tokens, P prefix tokens, D embedding width.
"""

import argparse
import csv
import io
import json
import logging
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.display import Bar, shown
from pipelines.predict_files import check_local
from vidflow.errors import ConfigError, VidflowError
from vidflow.records import ClipTokens
from vidflow.stages.sources import find_features
from vidflow.store.features import FeatureReader, unmerge

log = logging.getLogger("vidflow")
# Names of splits that `datasets` accepts. Source: datasets/naming.py, `_split_re`.
_SPLIT = re.compile(r"\w+(\.\w+)*")
# Bytes of tokens in a row group of Parquet, which is read as a whole.
_GROUP_BYTES = 1 << 26


def main(arguments: argparse.Namespace) -> None:
    """Write the folder; it appears complete or not at all.

    Raises:
        ConfigError: If there is no such feature set, or the folder exists.
        VidflowError: If the features are damaged, or clips have different numbers of tokens.
    """
    check_local("--to", arguments.to)
    if os.path.lexists(arguments.to):
        raise ConfigError(f"--to: {arguments.to} exists; name a folder to make")
    reader = FeatureReader(find_features(*arguments.source, name=arguments.features))
    aside = arguments.to.with_name(f".{arguments.to.name}.{secrets.token_hex(4)}.tmp")
    try:
        aside.mkdir(parents=True)
        (_write_npz if arguments.format == "npz" else _write_parquet)(reader, aside)
        aside.rename(arguments.to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    num_bytes = sum(file.stat().st_size for file in arguments.to.rglob("*"))
    log.info("export: %d clips, %.1f MB -> %s%s", len(reader), num_bytes / 1e6, arguments.to, _usage(arguments))


def _usage(arguments: argparse.Namespace) -> str:
    """Return how the folder is read."""
    if arguments.format == "npz":
        return "; clips.csv lists the files, features.json describes them"
    return f'; read it with datasets.load_dataset("{arguments.to}").with_format("torch")'


def _clips(reader: FeatureReader, positions: Sequence[int]) -> Iterator[ClipTokens]:
    bar = Bar("export", len(positions), unit="clips")
    with shown(bar):
        for number, position in enumerate(positions, 1):
            yield reader[position]
            bar.update(number)


def _write_npz(reader: FeatureReader, folder: Path) -> None:
    """Write a file per clip with its tokens (T, K, N, D), prefix (T, P, D), times and ground truth; and a table."""
    names = reader.metadata["class_names"]
    with (folder / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "key", "split", "label", "class_name"])
        for clip in _clips(reader, range(len(reader))):
            arrays: dict[str, Any] = {"tokens": unmerge(clip), "prefix": clip.prefix, "pts_seconds": clip.pts_seconds}
            np.savez(folder / f"{clip.key}.npz", **{**arrays, "label": clip.label, **_ground_truth(clip)})
            class_name = names[clip.label] if clip.label >= 0 else ""
            table.writerow([f"{clip.key}.npz", clip.key, clip.split, clip.label, class_name])
    (folder / "features.json").write_text(json.dumps(reader.metadata, indent=1, sort_keys=True) + "\n")


def _ground_truth(clip: ClipTokens) -> dict[str, np.ndarray]:
    if not clip.annotations:
        return {}
    with np.load(io.BytesIO(clip.annotations), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _write_parquet(reader: FeatureReader, folder: Path) -> None:
    """Write a file per split, as `datasets`, pandas and polars read it; ground truth stays the bytes of an .npz."""
    data = folder / "data"
    data.mkdir()
    splits = np.asarray(reader.splits)
    for split in dict.fromkeys(reader.splits):
        if not _SPLIT.fullmatch(split):
            raise VidflowError(
                f"split {split!r}: `datasets` wants a name of letters, digits, `_` and `.`; use --format npz"
            )
        positions = np.flatnonzero(splits == split).tolist()
        first = unmerge(reader[positions[0]])
        schema = _schema(reader, first.shape, reader[positions[0]].prefix.shape)
        per_group = max(1, _GROUP_BYTES // max(1, first.nbytes))
        clips = _clips(reader, positions)
        with pq.ParquetWriter(data / f"{split}-00000-of-00001.parquet", schema, compression="zstd") as writer:
            for _ in range(0, len(positions), per_group):
                group = [clip for clip, _ in zip(clips, range(per_group), strict=False)]
                writer.write_table(_to_table(group, schema))


def _schema(reader: FeatureReader, tokens: tuple[int, ...], prefix: tuple[int, ...]) -> pa.Schema:
    """Return the columns, with what `datasets` reads about them: shapes, and names of classes.

    Source: datasets, `Features.arrow_schema`.
    """
    features = {
        "key": {"dtype": "string", "_type": "Value"},
        "label": {"names": reader.metadata["class_names"], "_type": "ClassLabel"},
        "pts_seconds": {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "Sequence"},
        "tokens": {"shape": tokens, "dtype": "float16", "_type": "Array4D"},
        "prefix": {"shape": prefix, "dtype": "float16", "_type": "Array3D"},
        "annotations": {"dtype": "binary", "_type": "Value"},
    }
    if not reader.metadata["class_names"]:
        features["label"] = {"dtype": "int64", "_type": "Value"}
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "vidflow": json.dumps(reader.metadata, sort_keys=True),
    }
    columns = [
        pa.field("key", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("pts_seconds", pa.list_(pa.float64())),
        _array_field("tokens", tokens),
        _array_field("prefix", prefix),
        pa.field("annotations", pa.binary()),
    ]
    return pa.schema(columns, metadata)


def _array_field(name: str, shape: tuple[int, ...]) -> pa.Field:
    """Return a column of arrays of one shape: nested lists for most readers, arrays without a copy for `datasets`.

    Source: datasets, `_ArrayXDExtensionType`; Arrow names a column's type of another library in its metadata.
    """
    kind = pa.float16()
    for _ in shape:
        kind = pa.list_(kind)
    extension = f"datasets.features.features.Array{len(shape)}DExtensionType"
    described = {"ARROW:extension:name": extension, "ARROW:extension:metadata": json.dumps((shape, "float16"))}
    return pa.field(name, kind, metadata=described)


def _to_table(clips: Sequence[ClipTokens], schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = {
        "key": pa.array([clip.key for clip in clips]),
        "label": pa.array([clip.label for clip in clips], pa.int64()),
        "pts_seconds": _to_lists([clip.pts_seconds for clip in clips]),
        "tokens": _to_lists([unmerge(clip) for clip in clips]),
        "prefix": _to_lists([clip.prefix for clip in clips]),
        "annotations": pa.array([bytes(clip.annotations) for clip in clips], pa.binary()),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _to_lists(arrays: Sequence[np.ndarray]) -> pa.Array:
    """Return arrays of one shape as a column of nested lists.

    Raises:
        VidflowError: If their shapes differ.
    """
    if len(shapes := {array.shape for array in arrays}) > 1:
        raise VidflowError(f"clips have arrays of the shapes {sorted(shapes)}, wanted one shape; use --format npz")
    whole = np.stack(arrays)
    values = pa.array(whole.reshape(-1))
    for axis in reversed(range(1, whole.ndim)):
        num_lists = math.prod(whole.shape[:axis])
        offsets = np.arange(num_lists + 1) * whole.shape[axis]
        values = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    return values
