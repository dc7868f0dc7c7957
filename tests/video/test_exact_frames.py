"""Every accepted frame is the one that decoding the whole file in order gives for its time, or it is refused.

Container x codec x (B-frames, open groups, intra refresh, hidden frames, variable rate, negative times, damaged lists
of keyframes, joined recordings), through both decoders, for random sets of frames.
"""

import itertools
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_factory import mux, numbered_frames

from vidflow.errors import VideoError
from vidflow.video.decode import crop_square, decode_clip
from vidflow.video.ffmpeg import probe, probed

NUM_FRAMES, SIZE = 150, 48
CODECS = {
    "h264 b": ("libx264", {"g": "24", "bf": "3"}),
    "h264 p": ("libx264", {"g": "24", "bf": "0"}),
    "h264 open": ("libx264", {"x264-params": "open-gop=1:keyint=24:min-keyint=24:scenecut=0:bframes=3:b-adapt=0"}),
    "h264 refresh": ("libx264", {"x264-params": "intra-refresh=1:keyint=24:bframes=0"}),
    "hevc open": ("libx265", {"x265-params": "keyint=24:min-keyint=24:log-level=none"}),
    "hevc closed": ("libx265", {"x265-params": "keyint=24:min-keyint=24:open-gop=0:log-level=none"}),
    "mpeg4 b": ("mpeg4", {"g": "24", "bf": "2"}),
    "mpeg4 p": ("mpeg4", {"g": "24", "bf": "0"}),
    "mpeg2": ("mpeg2video", {"g": "24", "bf": "2"}),
    "mpeg1": ("mpeg1video", {"g": "24", "bf": "2"}),
    "wmv2": ("wmv2", {"g": "24"}),
    "msmpeg4": ("msmpeg4", {"g": "24"}),
    "flv1": ("flv", {"g": "24"}),
    "mjpeg": ("mjpeg", {}),
    "vp8": ("libvpx", {"g": "24"}),
    "vp9": ("libvpx-vp9", {"g": "24"}),
    "av1": ("libsvtav1", {"g": "24"}),
    "prores": ("prores_ks", {}),
    "ffv1": ("ffv1", {"g": "24"}),
}
PIXEL_FORMATS = {"mjpeg": "yuvj420p", "prores": "yuv422p10le"}
CONTAINERS = (
    "mp4",
    "mov",
    "mkv",
    "webm",
    "avi",
    "flv",
    "3gp",
    "ts",
    "m2ts",
    "mpg",
    "vob",
    "asf",
    "wmv",
    "mxf",
    "nut",
    "ogv",
)
QUICK = {("h264 b", "mp4"), ("h264 open", "mkv"), ("h264 refresh", "mp4"), ("h264 b", "ts"), ("h264 b", "asf")}
QUICK |= {("mpeg4 b", "avi"), ("mpeg4 b", "mpg"), ("hevc open", "mp4"), ("mpeg4 b", "mp4")}


def mux_apart(path: Path, codec: str) -> Path | None:
    """Write a video in a process of its own; None where the container does not hold the codec."""
    process = subprocess.run([sys.executable, __file__, str(path), codec], capture_output=True, text=True, check=False)
    return path if process.returncode == 0 else None


def decoded_in_order(path: Path, pts_seconds: np.ndarray) -> dict[float, np.ndarray]:
    """What the file says, by the slow way: all of it, in order; AVI's frames have an order, but no times."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        frames = [
            (frame.time, crop_square(frame.to_ndarray(format="rgb24"), SIZE, "box"))
            for frame in container.decode(stream)
        ]
        if container.format.name == "avi":
            return dict(zip(pts_seconds.tolist(), (pixels for _, pixels in frames), strict=True))
    return dict(frames)


def compare(path: Path, *, decoders=("pyav", "decord"), rounds: int = 6) -> Counter:
    """Count frames that are right, wrong, or refused with a reason."""
    counts: Counter = Counter()
    try:
        info = probe(path)
    except VideoError as error:
        return Counter({f"refused: {error.reason}": rounds})
    truth = decoded_in_order(path, info.pts_seconds)
    generator = np.random.default_rng(0)
    for number in range(rounds):
        wanted = np.sort(generator.integers(0, len(info.pts_seconds), 1 + number % 5))
        for decoder, is_same_opening in itertools.product(decoders, (False, True)):
            try:
                with probed(path) if is_same_opening else nullcontext((info, None)) as (told, opened):
                    clip = decode_clip(
                        path, told, wanted, decoder=decoder, size=SIZE, resize_filter="box", opened=opened
                    )
            except VideoError as error:
                counts[f"rejected: {error.reason}"] += len(wanted)
                continue
            for time, frame in zip(clip.pts_seconds.tolist(), clip.frames, strict=True):
                expected = next((pixels for pts, pixels in truth.items() if abs(pts - time) < 1e-6), None)
                is_right = expected is not None and (frame == expected).all()
                counts["right" if is_right else "wrong"] += 1
    return counts


@pytest.mark.parametrize(("codec", "container"), sorted(QUICK))
def test_frames_are_those_of_decoding_in_order(tmp_path, codec, container):
    counts = compare(mux_apart(tmp_path / f"clip.{container}", codec))
    assert not counts["wrong"], counts
    # ASF holds H.264 with times of decoding only.
    assert set(counts) == ({"refused: UnorderedTimes"} if (codec, container) == ("h264 b", "asf") else {"right"})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_frames_are_those_of_decoding_in_order_in_every_container_and_codec(tmp_path):
    total, table = Counter(), []
    for codec in CODECS:
        for container in CONTAINERS:
            path = mux_apart(tmp_path / f"clip.{container}", codec)
            if path is not None:
                counts = compare(path, rounds=12)
                total += counts
                table.append(f"{codec:13} {container:5} {dict(counts)}")
    print("\n".join(table), total, sep="\n")
    assert not total["wrong"]
    assert total["right"] > 5000


# --- odd files ---------------------------------------------------------------------------------------------------


def hidden_frames(folder):
    return mux(folder / "a.mp4", frames=numbered_frames(NUM_FRAMES), first_tick=-7, gop=24)


def negative_times(folder):
    return mux(folder / "a.mkv", frames=numbered_frames(NUM_FRAMES), first_tick=-30, gop=24)


def variable_rate(folder, suffix="mp4"):
    path = folder / f"a.{suffix}"
    ticks = np.cumsum(np.random.default_rng(1).integers(1, 9, NUM_FRAMES)).tolist()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "24", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for tick, pixels in zip(ticks, numbered_frames(NUM_FRAMES), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def patched_keyframes(folder, patch):
    path = mux(folder / "a.mp4", frames=numbered_frames(NUM_FRAMES), gop=24)
    content = bytearray(path.read_bytes())
    patch(content, content.index(b"stss"))
    path.write_bytes(content)
    return path


def no_list_of_keyframes(folder):
    def patch(content, at):
        content[at : at + 4] = b"free"

    return patched_keyframes(folder, patch)


def wrong_list_of_keyframes(folder):
    def patch(content, at):
        (count,) = np.frombuffer(content[at + 8 : at + 12], ">u4")
        numbers = np.frombuffer(content[at + 12 : at + 12 + 4 * count], ">u4").copy()
        numbers[1:] += 5
        content[at + 12 : at + 12 + 4 * count] = numbers.tobytes()

    return patched_keyframes(folder, patch)


def fragments(folder):
    whole = mux(folder / "whole.mp4", frames=numbered_frames(NUM_FRAMES), gop=24)
    return remux(whole, folder / "a.mp4", {"movflags": "frag_keyframe+empty_moov"})


def remux(source, path, options):
    with av.open(str(source)) as read, av.open(str(path), "w", options=options) as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
    return path


def joined_recordings(folder):
    path = mux(folder / "a.ts", frames=numbered_frames(60), gop=24)
    path.write_bytes(2 * path.read_bytes())
    return path


def late_start(folder):
    whole = mux(folder / "whole.ts", frames=numbered_frames(NUM_FRAMES), gop=24)
    path = folder / "a.ts"
    path.write_bytes(whole.read_bytes()[188 * 12 :])
    return path


ODD = {
    "hidden frames": (hidden_frames, {"right"}),
    "negative times": (negative_times, {"right"}),
    "variable rate": (variable_rate, {"right"}),
    "variable rate in matroska": (lambda folder: variable_rate(folder, "mkv"), {"right"}),
    "no list of keyframes": (no_list_of_keyframes, {"right"}),
    "wrong list of keyframes": (wrong_list_of_keyframes, {"right"}),
    "fragments": (fragments, {"right"}),
    "joined recordings": (joined_recordings, {"refused: UnorderedTimes"}),
    "starts in the middle": (late_start, {"right", "rejected: DecodeError"}),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_give_right_frames_or_a_reason(tmp_path, kind):
    make, outcomes = ODD[kind]
    counts = compare(make(tmp_path), rounds=10)
    assert not counts["wrong"], counts
    assert set(counts) <= outcomes, counts


if __name__ == "__main__":
    path, codec = Path(sys.argv[1]), sys.argv[2]
    name, options = CODECS[codec]
    mux(
        path,
        name,
        frames=numbered_frames(NUM_FRAMES),
        pixel_format=PIXEL_FORMATS.get(codec, "yuv420p"),
        codec_options=options,
    )
    with av.open(str(path)) as container:  # some muxers take what no demuxer then knows
        sys.exit(container.streams.best("video") is None or container.streams.best("video").codec_context is None)
