import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vidflow.npz import read_npz

ARRAYS = {
    "pts_seconds": np.arange(3) / 10,
    "boxes": np.zeros((0, 3, 4), np.float32),
    "visible": np.array([[True, False, True]]),
    "depth": np.asfortranarray(np.arange(24, dtype=">f2").reshape(3, 4, 2)),
    "unread": np.eye(2),
}


def read(path: Path) -> dict[str, np.ndarray]:
    return read_npz(path, lambda name: name != "unread")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def npy(header: str, data: bytes) -> bytes:
    """The bytes of an array with a header of our own."""
    text = (header + "\n").encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_they_were_written(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    got = read(tmp_path / "a.npz")
    assert got.keys() == ARRAYS.keys() - {"unread"}
    for name, array in got.items():
        np.testing.assert_array_equal(array, ARRAYS[name], strict=True)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_flipped_bit_anywhere_changes_what_is_read(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    good, wanted = path.read_bytes(), read(path)
    refused = 0
    for place in range(len(good)):  # each byte of every kind: headers, names, data, checksums, the directory, its end
        bit = 1 << place % 8
        path.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
        try:
            assert same(read(path), wanted), f"bit {bit} of byte {place}"
        except ValueError:
            refused += 1
    # What is left unread, such as dates, and copies of what the directory says, makes no difference.
    assert refused > len(good) / 2


def test_a_file_that_was_cut_off_or_went_on_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **ARRAYS)
    good = path.read_bytes()
    for end in range(0, len(good), 7):
        path.write_bytes(good[:end])
        with pytest.raises(ValueError, match=r"\.npz"):
            read(path)
    path.write_bytes(good + b"more")
    with pytest.raises(ValueError, match="not a readable"):
        read(path)


NUMBERS = "{'descr': '<f8', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (NUMBERS % "(3,)", r"claims the shape \(3,\) of <f8"),
        (NUMBERS % "(-2,)", "does not begin"),
        (NUMBERS % f"({10**18 - 1}, 0)", r"which does not match its \d+ bytes"),
        (NUMBERS % ("(" * 5000), "does not begin"),
        (NUMBERS % ("9" * 5000), "does not begin"),
        ("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2,), }", "does not begin"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", "holds |O"),
        ("{'descr': '|b1', 'fortran_order': False, 'shape': (16,), }", "values other than false and true"),
        ("__import__('os').abort()", "does not begin"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, complaint):
    path = zipped(tmp_path / "a.npz", {"a.npy": npy(header, b"\7" * 16)})
    with pytest.raises(ValueError, match=complaint):
        read_npz(path, lambda _: True)


def test_sizes_that_the_file_cannot_hold_are_refused_before_memory_is_asked_for(tmp_path):
    num_bytes = 1 << 45
    shape = f"({num_bytes // 8},)"
    path = zipped(tmp_path / "a.npz", {"a.npy": npy(NUMBERS % shape, b"")})
    data = bytearray(path.read_bytes())
    # The size in the directory: 32 bits, of which the array says more.
    place = data.rindex(b"PK\1\2") + 24
    data[place : place + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"claims 2147483647 bytes, more than \d+ compressed bytes can hold"):
        read_npz(path, lambda _: True)


def test_names_that_come_twice_and_other_packings_are_refused(tmp_path):
    path, one = tmp_path / "a.npz", io.BytesIO()
    np.save(one, np.zeros(100))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", one.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", one.getvalue())
    with pytest.raises(ValueError, match=r"holds a\.npy more than once"):
        read(path)
    good = zipped(path, {"a.npy": one.getvalue()}).read_bytes()
    for packing in (12, 14, 95):  # bzip2, lzma, xz
        data = bytearray(good)
        data[8], data[data.rindex(b"PK\1\2") + 10] = packing, packing
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a readable"):
            read(path)
    data = bytearray(good)
    data[6] = data[data.rindex(b"PK\1\2") + 8] = 1  # encrypted
    path.write_bytes(data)
    with pytest.raises(ValueError, match="encrypted"):
        read(path)


def test_an_archive_that_states_another_number_of_arrays_is_refused_with_both(tmp_path):
    path = zipped(tmp_path / "a.npz", {"a.npy": b"", "b.npy": b""})
    data = bytearray(path.read_bytes())
    data[-22 + 10] = 7  # the end record's number of members, which zipfile does not compare
    path.write_bytes(data)
    with pytest.raises(ValueError, match="2 members found, but the archive's end record says 7"):
        read(path)
