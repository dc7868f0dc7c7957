"""Read the display matrix of a file as quarter turns and mirroring, and apply it to frames.

Axes: H and W pixels, 3 the channels red, green, blue.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from jaxtyping import UInt8

from vidflow.errors import VideoError

_ONE = 1 << 16
# Encoders round the sines and cosines of right angles by a few units in the last place.
_SLACK = 64


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a picture is displayed: first mirrored left to right if `mirrored`, then turned.

    Attributes:
        quarter_turns: Counter-clockwise quarter turns, 0 to 3.
        mirrored: Whether it is mirrored first.
    """

    quarter_turns: int = 0
    mirrored: bool = False

    def apply(self, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Return a picture as displayed."""
        if self == Orientation():
            return pixels  # np.rot90 costs time even without a turn
        return np.rot90(pixels[:, ::-1] if self.mirrored else pixels, self.quarter_turns)


# A display matrix (a, b, c, d) takes the pixel (x, y), y down, to (a x + c y, b x + d y).
_MATRICES = {
    (1, 0, 0, 1): Orientation(0),
    (0, -1, 1, 0): Orientation(1),
    (-1, 0, 0, -1): Orientation(2),
    (0, 1, -1, 0): Orientation(3),
    (-1, 0, 0, 1): Orientation(0, True),
    (0, 1, 1, 0): Orientation(1, True),
    (1, 0, 0, -1): Orientation(2, True),
    (0, -1, -1, 0): Orientation(3, True),
}


def orientation_of(frame: VideoFrame, path: Path | str) -> Orientation:
    """Return the orientation of a decoded frame, as FFmpeg's own player shows it.

    Raises:
        VideoError: `Orientation` if the display matrix is not a quarter turn or mirror, such as all zeros.
    """
    data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload] # its stub says str
    if data is None:
        return Orientation()
    matrix = struct.unpack("=9i", bytes(data)[:36])
    corners = matrix[0], matrix[1], matrix[3], matrix[4]
    nearest = tuple(round(value / _ONE) for value in corners)
    found = _MATRICES.get(nearest)
    if found is None or any(abs(value - _ONE * whole) > _SLACK for value, whole in zip(corners, nearest, strict=True)):
        raise VideoError(
            "Orientation",
            f"{path}: got the display matrix {[round(value / _ONE, 4) for value in corners]}; wanted quarter turns "
            "and mirrors only: remove it from the file or re-encode the video upright",
        )
    return found
