"""Find where the values of every record of an Arrow IPC file are, in one pass instead of one call per record.

A record is a record batch of one row. Its columns are numbers, lists of numbers, text or bytes.
Axes: R records, C columns.
Source: https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format, with its File.fbs and Message.fbs, and
https://flatbuffers.dev/internals for tables and vectors.
"""

import struct
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64

_BLOCK = np.dtype([("offset", "<i8"), ("metadata_size", "<i4"), ("padding", "<i4"), ("body_size", "<i8")])
# Bytes of the magic word at the start, of the prefix of a message, and of what follows the footer.
_MAGIC, _PREFIX, _TAIL = 8, 8, 10
# Field numbers in their tables.
_FOOTER_BLOCKS = 3
_MESSAGE_HEADER, _MESSAGE_BODY_SIZE = 2, 3
_BATCH_NODES, _BATCH_BUFFERS, _BATCH_COMPRESSION = 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which nodes and buffers of a record batch describe each column of a schema.

    Attributes:
        item_sizes: Bytes per number; 1 for text and bytes.
        are_bytes: Whether the column is text or bytes; its length is then that of its buffer.
        nodes: Index of the node with the number of rows and of nulls.
        lengths: Index of the node with the number of values; for a list, the node of its elements.
        buffers: Index of the buffer with the values.
        num_nodes: Nodes of a record batch.
        num_buffers: Buffers of a record batch.
    """

    item_sizes: Int64[np.ndarray, " C"]
    are_bytes: Bool[np.ndarray, " C"]
    nodes: Int64[np.ndarray, " C"]
    lengths: Int64[np.ndarray, " C"]
    buffers: Int64[np.ndarray, " C"]
    num_nodes: int
    num_buffers: int


def lay_out(schema: pa.Schema) -> Columns:
    """Number the nodes and buffers of a schema: depth first; the buffer with the values is the last of each node."""
    nodes, lengths, buffers, elements = [], [], [], []
    num_nodes = num_buffers = 0
    for kind in schema.types:
        parts = [kind, *(kind.field(child).type for child in range(kind.num_fields))]
        nodes.append(num_nodes)
        num_nodes += len(parts)
        num_buffers += sum(part.num_buffers for part in parts)
        lengths.append(num_nodes - 1)
        buffers.append(num_buffers - 1)
        elements.append(parts[-1])
    are_bytes = [not pa.types.is_primitive(element) for element in elements]
    sizes = [1 if is_bytes else element.bit_width // 8 for is_bytes, element in zip(are_bytes, elements, strict=True)]
    return Columns(
        item_sizes=np.array(sizes),
        are_bytes=np.array(are_bytes),
        nodes=np.array(nodes),
        lengths=np.array(lengths),
        buffers=np.array(buffers),
        num_nodes=num_nodes,
        num_buffers=num_buffers,
    )


def schema_message(data: memoryview) -> bytes:
    """Return the message with the schema, which is the first message of a file."""
    return bytes(data[_MAGIC : _MAGIC + _PREFIX + _int32(data, _MAGIC + 4)])


def find_spans(data: memoryview, columns: Columns) -> Int64[np.ndarray, "R 2*C"]:
    """Return for each record and column the position of its first value and the position after its last value.

    Positions are counted from the start of the file in values of the column's size. Both are -1 if the column is null.

    Args:
        data: All bytes of the file.
        columns: Result of `lay_out` for its schema.

    Raises:
        ValueError: If the file does not hold such records, uncompressed and all with the same layout.
    """
    end = len(data) - _TAIL
    num_records, first = _vector(data, _follow(data, end - _int32(data, end)), _FOOTER_BLOCKS)
    blocks = np.frombuffer(data, _BLOCK, num_records, first)
    if not num_records:
        return np.empty((0, 2 * len(columns.nodes)), np.int64)
    bodies = blocks["offset"] + blocks["metadata_size"]
    nodes, buffers = _read_places(data, blocks, columns)
    if (nodes[:, columns.nodes, 0] != 1).any():
        raise ValueError("not one row in each record batch")
    starts = bodies[:, None] + buffers[:, columns.buffers, 0]
    if (starts % columns.item_sizes).any():
        raise ValueError("numbers that are not aligned to their size")
    starts //= columns.item_sizes
    lengths = np.where(columns.are_bytes, buffers[:, columns.buffers, 1], nodes[:, columns.lengths, 0])
    spans = np.stack([starts, starts + lengths], axis=2)
    spans[nodes[:, columns.nodes, 1] > 0] = -1
    return spans.reshape(num_records, -1)


def _read_places(
    data: memoryview, blocks: np.ndarray, columns: Columns
) -> tuple[Int64[np.ndarray, "R nodes 2"], Int64[np.ndarray, "R buffers 2"]]:
    """Return the length and null count of every node, and the start within the body and length of every buffer."""
    offsets, size = blocks["offset"].tolist(), int(blocks["metadata_size"][0])
    metadata = bytearray().join([data[offset : offset + size] for offset in offsets])
    batches = np.frombuffer(metadata, _metadata_type(data, offsets[0], size, columns))
    nodes, buffers = batches["nodes"].copy(), batches["buffers"].copy()
    # The other bytes say where these parts are, so they must equal those of the first batch.
    for name in ("body_size", "nodes", "buffers"):
        batches[name] = 0
    if metadata != metadata[:size] * len(offsets) or (blocks["metadata_size"] != size).any():
        raise ValueError("record batches that are not laid out alike")
    return nodes, buffers


def _metadata_type(data: memoryview, offset: int, size: int, columns: Columns) -> np.dtype[np.void]:
    """Return where the metadata of the batch at `offset` has the parts that differ from batch to batch."""
    message = _follow(data, offset + _PREFIX)
    header, body_size = _field(data, message, _MESSAGE_HEADER), _field(data, message, _MESSAGE_BODY_SIZE)
    if header is None or body_size is None:
        raise ValueError("a record batch without content")
    batch = _follow(data, header)
    if _field(data, batch, _BATCH_COMPRESSION) is not None:
        raise ValueError("compressed record batches")
    num_nodes, nodes = _vector(data, batch, _BATCH_NODES)
    num_buffers, buffers = _vector(data, batch, _BATCH_BUFFERS)
    if (num_nodes, num_buffers) != (columns.num_nodes, columns.num_buffers):
        raise ValueError(
            f"record batches of {num_nodes} nodes and {num_buffers} buffers, wanted {columns.num_nodes} and "
            f"{columns.num_buffers}"
        )
    return np.dtype(
        {
            "names": ["body_size", "nodes", "buffers"],
            "formats": ["<i8", ("<i8", (num_nodes, 2)), ("<i8", (num_buffers, 2))],
            "offsets": [body_size - offset, nodes - offset, buffers - offset],
            "itemsize": size,
        }
    )


def _int32(data: memoryview, at: int) -> int:
    value: int = struct.unpack_from("<i", data, at)[0]
    return value


def _follow(data: memoryview, at: int) -> int:
    """Return the position of the table or vector that the number at `at` points to."""
    return at + _int32(data, at)


def _field(data: memoryview, table: int, number: int) -> int | None:
    """Return the position of a field of a table; None if the table omits it."""
    entries = table - _int32(data, table)
    entry = 4 + 2 * number
    size, offset = struct.unpack_from("<H", data, entries)[0], 0
    if entry < size:
        offset = struct.unpack_from("<H", data, entries + entry)[0]
    return table + offset if offset else None


def _vector(data: memoryview, table: int, number: int) -> tuple[int, int]:
    """Return the length of a vector in a table and the position of its first element; length 0 if it is omitted."""
    field = _field(data, table, number)
    if field is None:
        return 0, table
    vector = _follow(data, field)
    return _int32(data, vector), vector + 4
