"""Write H.264 videos with reproducible bytes.

Axes: H and W pixels, 3 the channels red, green, blue.
"""

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain, count
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from jaxtyping import UInt8

# Bit-exact, with the same rounding on every CPU, so that written files can be compared by digest.
_EXACT_RESCALING = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
)

# Otherwise x264's macroblock tree differs between CPUs, and its assembly reads uninitialised memory.
_REPRODUCIBLE = "cpu-independent=1"


def write_h264(
    path: Path,
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    *,
    fps: Fraction | int,
    crf: int = 18,
    gop: int = 12,
    num_b_frames: int = 2,
    pts: Iterable[int] | None = None,
    time_base: Fraction | None = None,
) -> None:
    """Write frames as H.264 (yuv420p, BT.601, limited range) in an MP4 whose index comes first.

    With the same versions of x264 and FFmpeg, the same frames and arguments give the same bytes on any CPU. The
    encoder has one thread, and the file holds no date and no name of the machine.

    Args:
        path: File to write; its folder exists.
        frames: RGB frames, all of one size, both sides even.
        fps: Nominal frame rate in frames per second.
        crf: x264's constant rate factor, 0 (lossless except for chroma subsampling) to 51.
        gop: Largest distance between keyframes in frames, at least 1.
        num_b_frames: Largest number of B-frames in a row; with 0, coding order is display order.
        pts: Presentation time of every frame in ticks of `time_base`, strictly ascending;
            None: 0, 1, 2, ...
        time_base: Seconds per tick; None: `1 / fps`.

    Raises:
        ValueError: If there are no frames, a side is odd, frames differ in size, or `pts` are negative
            or not one per frame.
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"{path}: got no frames to write; wanted at least one")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: got frames of {width}x{height}; 4:2:0 needs even sides: crop or pad them")
    rate = Fraction(fps)
    tick = time_base or 1 / rate
    options = {"crf": str(crf), "g": str(gop), "bf": str(num_b_frames), "threads": "1", "x264-params": _REPRODUCIBLE}
    muxer = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=muxer) as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.flags |= Flags.bitexact
        stream.codec_context.time_base = tick
        stream.codec_context.colorspace = Colorspace.SMPTE170M
        stream.codec_context.color_range = ColorRange.MPEG
        ticks = count() if pts is None else pts
        for pixels, when in zip(chain([first], iterator), ticks, strict=pts is not None):
            if pixels.shape != first.shape or when < 0:
                raise ValueError(
                    f"{path}: got a frame of {pixels.shape} at tick {when}; wanted {first.shape}, tick >= 0"
                )
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                interpolation=_EXACT_RESCALING,
                threads=1,
            )
            frame.pts, frame.time_base = when, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
