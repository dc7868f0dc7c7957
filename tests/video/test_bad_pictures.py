"""Damage, short files, odd orientations and files that point elsewhere: a reason each, never a wrong picture."""

import itertools
import os
import random
from contextlib import nullcontext
from fractions import Fraction

import av
import numpy as np
import pytest
from clip_factory import cut, mux, numbered_frame, numbered_frames, read_number

from vidflow.errors import VideoError
from vidflow.video.ffmpeg import decode, probe, probed, stream_frames
from vidflow.video.ffmpeg.opening import opened


def textured(num_frames, height=96, width=128):
    blocks = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    return [np.roll(blocks, 3 * number, axis=1).astype(np.uint8) for number in range(num_frames)]


def change_a_byte(content, packets, generator):
    position, size = generator.choice(packets)
    damaged = bytearray(content)
    damaged[position + generator.randrange(min(20, size // 2), size)] ^= 1 << generator.randrange(8)
    return bytes(damaged)


# --- pictures ----------------------------------------------------------------------------------------------------


def test_a_changed_byte_of_h264_is_a_reject_in_most_files_that_it_spoils(tmp_path):
    path, bad = mux(tmp_path / "a.mp4", frames=textured(30), gop=12), tmp_path / "bad.mp4"
    truth, content = dict(decode(path, probe(path), range(30))), path.read_bytes()
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    generator, spoiled, noticed = random.Random(0), 0, 0
    for _ in range(40):
        bad.write_bytes(change_a_byte(content, packets, generator))
        with av.open(str(bad)) as container:  # as a decoder shows it that paints over
            shown = {f.pts: f.to_ndarray(format="rgb24") for f in container.decode(video=0)}
        worst = max(np.abs(a.astype(int) - b).mean() for a, b in zip(truth.values(), shown.values(), strict=False))
        if worst < 1:
            continue
        spoiled += 1
        try:
            list(decode(bad, probe(bad), range(30)))
        except VideoError as error:
            noticed += error.reason == "DecodeError"
    assert spoiled > 20
    # After some changes the entropy decoder reads another picture to its end, and nothing in the file says that.
    assert noticed > 0.6 * spoiled


def test_only_frames_that_lean_on_the_damage_are_rejected(tmp_path):
    path = mux(tmp_path / "a.mp4", frames=textured(60), codec_options={"x264-params": "keyint=12:scenecut=0:bframes=2"})
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        victim = packets[14]
    content = bytearray(path.read_bytes())
    content[victim.pos + 8 : victim.pos + victim.size] = bytes(victim.size - 8)
    truth = dict(decode(path, probe(path), range(60)))
    path.write_bytes(content)
    info, rejected = probe(path), set()
    for index, is_same_opening in itertools.product(range(60), (False, True)):
        try:
            with probed(path) if is_same_opening else nullcontext((info, None)) as (told, opening):
                ((_, frame),) = decode(path, told, [index], opened=opening)
        except VideoError:
            rejected.add((index, is_same_opening))
        else:
            np.testing.assert_array_equal(frame, truth[index])
    assert rejected
    assert {index for index, _ in rejected} <= set(range(12, 24))
    assert len(rejected) == 2 * len({index for index, _ in rejected})


def test_prediction_stops_where_a_file_is_damaged(tmp_path):
    path = mux(tmp_path / "a.mp4", frames=textured(60), gop=12)
    with av.open(str(path)) as container:
        victim = [packet for packet in container.demux(video=0) if packet.size][30]
    content = bytearray(path.read_bytes())
    content[victim.pos + 8 : victim.pos + victim.size] = bytes(victim.size - 8)
    path.write_bytes(content)
    with pytest.raises(VideoError, match="damaged after"):
        list(stream_frames(str(path), fps=25))


def test_a_last_packet_without_a_picture_is_no_frame(tmp_path):
    whole, path = mux(tmp_path / "whole.avi", "mpeg4", frames=numbered_frames(64)), tmp_path / "a.avi"
    with av.open(str(whole)) as read, av.open(str(path), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream, last = stream, packet.dts
                write.mux(packet)
        # A P-VOP of MPEG-4 whose `vop_coded` is 0: code, type, time of 14 / 25 s, not coded, stuffing.
        empty = av.Packet(b"\0\0\1\xb6" + int("0101011101001111", 2).to_bytes(2, "big"))
        empty.stream, empty.time_base, empty.pts = stream, stream.time_base, last + 1
        empty.dts = empty.pts
        write.mux(empty)
    info = probe(path)
    assert len(info.pts_seconds) == 64
    assert [read_number(frame) for _, frame in decode(path, info, range(64))] == list(range(64))


# --- orientation -------------------------------------------------------------------------------------------------


def shown_by(matrix, pixels):
    """Put every pixel where the display matrix sends it, one by one."""
    (a, b), (c, d) = matrix
    height, width = pixels.shape[:2]
    places = {(x, y): (a * x + c * y, b * x + d * y) for y in range(height) for x in range(width)}
    left, top = (min(place[axis] for place in places.values()) for axis in (0, 1))
    turned = np.zeros((height, width, 3) if a or d else (width, height, 3), np.uint8)
    for (x, y), (to_x, to_y) in places.items():
        turned[to_y - top, to_x - left] = pixels[y, x]
    return turned


def set_matrix(path, corners):
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    (a, b), (c, d) = corners
    values = [a, b, 0, c, d, 0, 0, 0, 0]
    content[start : start + 32] = b"".join(int(v * 65536).to_bytes(4, "big", signed=True) for v in values[:8])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "matrix",
    [m for m in itertools.product(itertools.product((-1, 0, 1), repeat=2), repeat=2) if abs(np.linalg.det(m)) == 1
     and sum(map(abs, itertools.chain(*m))) == 2],
)  # fmt: skip
def test_turns_and_mirrors_are_shown_as_the_display_matrix_says(tmp_path, matrix):
    upright = mux(tmp_path / "a.mp4", frames=[numbered_frame(77, height=32, width=48)] * 2)
    ((_, plain),) = decode(upright, probe(upright), [0])
    path = set_matrix(mux(tmp_path / "b.mp4", frames=[numbered_frame(77, height=32, width=48)] * 2), matrix)
    info = probe(path)
    ((_, seen),) = decode(path, info, [0])
    np.testing.assert_array_equal(seen, shown_by(matrix, plain))
    assert seen.shape[:2] == (info.height, info.width)
    np.testing.assert_array_equal(next(stream_frames(str(path), fps=25)).pixels, seen)


@pytest.mark.parametrize("matrix", [((0, 0), (0, 0)), ((0.7, 0.7), (-0.7, 0.7)), ((2, 0), (0, 1))])
def test_a_matrix_that_is_no_quarter_turn_is_a_reject(tmp_path, matrix):
    path = set_matrix(mux(tmp_path / "a.mp4", frames=numbered_frames(3)), matrix)
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.reason == "Orientation"


# --- length ------------------------------------------------------------------------------------------------------


def indexed_fragments(folder):
    """One segment index ahead of fragments, as DASH has it."""
    path, options = folder / "a.mp4", {"movflags": "dash+frag_keyframe+global_sidx"}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "24"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number, pixels in enumerate(textured(100)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


DECLARING = {
    "DASH": indexed_fragments,
    "FLV": lambda folder: mux(folder / "a.flv", "flv", frames=textured(100), codec_options={}),
    "ASF": lambda folder: mux(folder / "a.wmv", "wmv2", frames=textured(100), codec_options={}),
    "MP4, index first": lambda folder: remuxed_faststart(folder),
}


def remuxed_faststart(folder):
    path = folder / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for pixels in textured(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("kind", DECLARING)
def test_a_cut_file_that_declares_its_length_is_truncated_wherever_it_is_cut(tmp_path, kind):
    whole = DECLARING[kind](tmp_path)
    assert len(probe(whole).pts_seconds) == 100
    for fraction in np.linspace(0.4, 0.8, 9):
        short = cut(whole, tmp_path / f"short{whole.suffix}", fraction)
        with pytest.raises(VideoError) as caught:
            probe(short)
        assert caught.value.reason == "Truncated", (fraction, str(caught.value))


# --- files that point elsewhere ----------------------------------------------------------------------------------

POINTERS = {
    "playlist.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "playlist.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile secret.ts\n",
    "list.mp4": "ffconcat version 1.0\nfile secret.ts\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "manifest.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    "<AdaptationSet><Representation id='0'><BaseURL>secret.ts</BaseURL></Representation></AdaptationSet></Period>"
    "</MPD>",
}


@pytest.mark.parametrize("name", POINTERS)
def test_a_file_that_names_other_files_is_no_video(tmp_path, name):
    mux(tmp_path / "secret.ts", frames=numbered_frames(30))
    path = tmp_path / name
    path.write_text(POINTERS[name])
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.reason == "NotAVideo"
    with pytest.raises(VideoError):
        next(stream_frames(str(path), fps=5))


def test_a_pipe_or_device_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    for name in ("pipe.mp4", "device.mp4"):
        with pytest.raises(VideoError) as caught, opened(tmp_path / name):
            pass
        assert caught.value.reason == "NotAFile"
