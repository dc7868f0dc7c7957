"""Small videos with a number in every frame, in any container and codec, for the tests of vidflow.video."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vidflow.video.ffmpeg import write_h264

CODE_BITS = 8
HEIGHT, WIDTH = 64, 128


def numbered_frame(number: int, *, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame whose upper half spells `number` in eight black or white blocks, over a smooth moving ramp."""
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([columns * 200 // width + 20, rows * 200 // height + 20, (columns + 3 * number) % 64 + 96], axis=-1)
    bits = number >> (columns[0] * CODE_BITS // width) & 1
    ramp[: height // 2] = (bits * 255)[None, :, None]
    return ramp.astype(np.uint8)


def read_number(frame: np.ndarray) -> int:
    """The number that `numbered_frame` spelled, however the frame was resized."""
    height, width = frame.shape[:2]
    middles = ((np.arange(CODE_BITS) + 0.5) * width / CODE_BITS).astype(int)
    bits = frame[height // 4, middles].mean(axis=-1) > 127
    return int((bits << np.arange(CODE_BITS)).sum())


def numbered_frames(num_frames: int, *, height: int = HEIGHT, width: int = WIDTH) -> Iterator[np.ndarray]:
    return (numbered_frame(number, height=height, width=width) for number in range(num_frames))


def mux(
    path: Path,
    codec: str = "libx264",
    *,
    frames: Sequence[np.ndarray] | Iterator[np.ndarray],
    pixel_format: str = "yuv420p",
    rotation: int | None = None,
    first_tick: int = 0,
    audio: bool = False,
    gop: int = 12,
    num_b_frames: int = 2,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """Write frames at 25 per second with any codec and container that FFmpeg has."""
    options = {"g": str(gop), "bf": str(num_b_frames)} if codec_options is None else codec_options
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        tone = container.add_stream("aac", rate=16000) if audio else None
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for tick, pixels in enumerate(frames, first_tick):
            if tick == first_tick:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            _mux_silence(container, tone)
    return path


def mux_vp9(path: Path, num_frames: int, gop: int = 12) -> Path:
    """Write VP9 from a process of its own: decord, once loaded, puts its old libvpx before PyAV's."""
    subprocess.run([sys.executable, __file__, str(path), str(num_frames), str(gop)], check=True)
    return path


def mux_open_groups(path: Path, num_frames: int) -> Path:
    """Write H.264 with groups of 30 frames whose last B-frames are coded after the next keyframe."""
    x264 = "open-gop=1:keyint=30:min-keyint=30:scenecut=0:bframes=3:b-adapt=0"
    return mux(path, frames=numbered_frames(num_frames), codec_options={"x264-params": x264})


def _mux_silence(container, stream) -> None:
    for number in range(20):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, number * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        _mux_silence(container, container.add_stream("aac", rate=16000))
    return path


def write_without_frames(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()
    return path


def write_gif(path: Path, num_frames: int) -> Path:
    images = [Image.fromarray(frame) for frame in numbered_frames(num_frames)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=40)
    return path


def cut(source: Path, path: Path, fraction: float) -> Path:
    """Copy only the first part of a file, as an interrupted download would."""
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def damage(path: Path, *, packet: int) -> Path:
    """Blank the content of one coded frame, in coding order, and leave its container whole."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        victim = [each for each in container.demux(video=0) if each.size][packet]
        content[victim.pos + 5 : victim.pos + victim.size] = bytes(victim.size - 5)
    path.write_bytes(content)
    return path


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def _cut_first(folder: Path, missing_bytes: int | None = None) -> Path:
    whole = folder / "whole.mp4"
    write_h264(whole, numbered_frames(60), fps=25)
    if missing_bytes is None:
        return cut(whole, folder / "bad.mp4", 0.7)
    return _write(folder / "bad.mp4", whole.read_bytes()[:-missing_bytes])


def _cut_last(folder: Path, suffix: str, codec: str, fraction: float) -> Path:
    return cut(mux(folder / f"whole.{suffix}", codec, frames=numbered_frames(60)), folder / f"bad.{suffix}", fraction)


BAD_VIDEOS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "missing": ("Missing", lambda folder: folder / "nothing here.mp4"),
    "below a file": ("Missing", lambda folder: _write(folder / "file", b"x") / "clip.mp4"),
    "folder": ("NotAFile", lambda folder: _make_folder(folder / "bad.mp4")),
    "empty": ("Empty", lambda folder: _write(folder / "bad.mp4", b"")),
    "text": ("NotAVideo", lambda folder: _write(folder / "bad.mp4", b"this is no video\n" * 100)),
    "noise": ("NotAVideo", lambda folder: _write(folder / "bad.mp4", np.random.default_rng(0).bytes(4000))),
    "subtitles": (
        "NoVideoStream",
        lambda folder: _write(folder / "bad.mp4", b"1\n00:00:01,000 --> 00:00:02,000\nhi\n\n"),
    ),
    "audio only": ("NoVideoStream", lambda folder: write_audio_only(folder / "bad.mp4")),
    "no frames": ("NoFrames", lambda folder: write_without_frames(folder / "bad.mp4")),
    "cut, index first": ("Truncated", _cut_first),
    "four bytes short, index first": ("Truncated", lambda folder: _cut_first(folder, missing_bytes=4)),
    "cut, index last": ("Truncated", lambda folder: _cut_last(folder, "mp4", "libx264", 0.9)),
    "cut webm": ("Truncated", lambda folder: cut(mux_vp9(folder / "whole.webm", 60), folder / "bad.webm", 0.6)),
    "cut avi": ("Truncated", lambda folder: _cut_last(folder, "avi", "mpeg4", 0.4)),
    "raw stream": ("NoTimestamps", lambda folder: mux(folder / "bad.h264", frames=numbered_frames(10))),
}
"""Every bad video we know how to make: the reason it must be refused for, and how to make it in a folder."""


if __name__ == "__main__":
    mux(Path(sys.argv[1]), "libvpx-vp9", frames=numbered_frames(int(sys.argv[2])), gop=int(sys.argv[3]))
