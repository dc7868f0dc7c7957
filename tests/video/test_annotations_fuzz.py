"""Damaged and hostile annotations: each is a reject or finite ground truth, and bit rot never another truth."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidflow.errors import VideoError
from vidflow.video.annotations import clip_annotations

FRAMES = 4
GOOD = {
    "pts_seconds": np.arange(FRAMES) / 10,
    "boxes": np.tile(np.float32([4, 4, 12, 12]), (2, FRAMES, 1)),
    "boxes_visible": np.ones((2, FRAMES), bool),
    "points": np.tile(np.float32([8, 8]), (3, FRAMES, 1)),
    "points_visible": np.ones((3, FRAMES), bool),
    "depth": np.ones((FRAMES, 4, 6), np.float16),
    "camera_pose": np.tile(np.eye(4), (FRAMES, 1, 1)),
    "frame_size": np.array([16, 24]),
    "camera_intrinsics": np.eye(3),
}
DTYPES = ["bool", "u1", "i8", "<f2", ">f4", "f8", "g", "c8", "U3", "S2", "M8[s]", "O", "V4", "f4,i2"]
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, FRAMES, FRAMES, 6, 7]), max_size=4)


def packed(arrays: dict[str, np.ndarray], *, compressed: bool) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


ARCHIVES = [packed(GOOD, compressed=compressed) for compressed in (False, True)]
PLACES = st.integers(0, 1 << 16)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good archive with bytes flipped, overwritten, cut out, doubled or cut off."""
    data = bytearray(draw(st.sampled_from(ARCHIVES)))
    for _ in range(draw(st.integers(1, 3))):
        data = data or bytearray(1)
        place, length = draw(PLACES) % len(data), draw(st.integers(1, 40))
        match draw(st.sampled_from(["flip", "flip", "overwrite", "remove", "double", "end"])):
            case "flip":
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "overwrite":
                data[place : place + length] = draw(st.binary(min_size=length, max_size=length))
            case "remove":
                del data[place : place + length]
            case "double":
                data[place:place] = data[place : place + length]
            case "end":
                del data[place + 1 :]
    return bytes(data)


@st.composite
def well_packed(draw: st.DrawFn) -> bytes:
    """An archive that is whole, of arrays that are damaged or begin as no array does: its checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for name, array in GOOD.items():
            one = io.BytesIO()
            np.save(one, array)
            data = bytearray(one.getvalue())
            if draw(st.integers(0, 3)) == 0:
                # The header lies in the first 128 bytes.
                place = draw(PLACES) % draw(st.sampled_from([10, 128, len(data)]))
                new = draw(st.one_of(st.binary(min_size=1, max_size=20), st.sampled_from([b"(" * 900, b"9" * 4400])))
                data[place : place + draw(st.integers(0, 20))] = new
            archive.writestr(f"{name}.npy", bytes(data))
    return buffer.getvalue()


@st.composite
def misfitting(draw: st.DrawFn) -> bytes:
    """An archive of good arrays and some of other types, shapes and values."""
    arrays = dict(GOOD)
    for name in draw(st.lists(st.sampled_from(sorted(GOOD)), min_size=1, max_size=3)):
        match draw(st.sampled_from(["absent", "value", "value", "type", "shape"])):
            case "absent":
                arrays.pop(name, None)
            case "value":
                array = GOOD[name].astype(draw(st.sampled_from([np.float64, np.float32])))
                extreme = st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -1e30, 1e-320, -1.0, 0.5, 65504.0, 65519.0])
                with np.errstate(over="ignore"):
                    array.flat[draw(PLACES) % array.size] = draw(st.one_of(extreme, st.floats()))
                arrays[name] = array
            case "type":
                arrays[name] = np.zeros(GOOD[name].shape, draw(st.sampled_from(DTYPES)))
            case _:
                arrays[name] = np.ones(draw(SHAPES), draw(st.sampled_from(DTYPES[:6])))
    return packed(arrays, compressed=draw(st.booleans()))


@pytest.fixture(scope="module")
def truth_of(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "truth.npz"
    times = np.array([0.0, 0.1, 0.3])

    def run(data: bytes) -> bytes | None:
        """Return the ground truth of a clip, or None where the file is a reject."""
        path.write_bytes(data)
        try:
            return clip_annotations(path, times, source_height=16, source_width=24, size=4)
        except VideoError as error:
            if error.reason != "Annotations" or str(path) not in str(error):
                raise
            return None

    return run


@pytest.mark.parametrize(
    "num_inputs", [pytest.param(100, id="few"), pytest.param(7000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
@pytest.mark.parametrize("kind", [damaged, well_packed, misfitting])
def test_every_input_is_a_reject_or_finite_ground_truth(truth_of, kind, num_inputs):
    wanted, outcomes = truth_of(ARCHIVES[0]), {"reject": 0, "truth": 0}

    @settings(max_examples=num_inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(kind())
    def check(data: bytes) -> None:
        got = truth_of(data)
        outcomes["reject" if got is None else "truth"] += 1
        if got is None:
            return
        if kind is damaged:  # checksums leave nothing else
            assert got == wanted
        with np.load(io.BytesIO(got), allow_pickle=False) as stored:
            for name in stored.files:
                assert np.isfinite(stored[name]).all(), name

    check()
    assert outcomes["reject"] > 0
    assert outcomes["truth"] > 0 or num_inputs == 100  # a few may all be rejects
    print(kind.__name__, outcomes)  # for `pytest -s`
