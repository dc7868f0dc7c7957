import socket
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
from clip_factory import cut, mux, numbered_frames, read_number

from vidflow.errors import VideoError
from vidflow.video.ffmpeg import probe, stream_frames, write_h264
from vidflow.video.sampling import frames_at, window_times


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """40 numbered frames, 10 per second."""
    path = tmp_path_factory.mktemp("stream") / "steady.mp4"
    write_h264(path, numbered_frames(40), fps=10)
    return path


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """12 numbered frames at times that follow no rate, the first not at zero."""
    path = tmp_path_factory.mktemp("stream") / "uneven.mp4"
    pts = [200, 210, 300, 500, 505, 510, 900, 1000, 1400, 1410, 1700, 1800]
    write_h264(path, numbered_frames(12), fps=10, pts=pts, time_base=Fraction(1, 1000))
    return path


def numbers(path, **settings):
    return [read_number(frame.pixels) for frame in stream_frames(str(path), **settings)]


@pytest.mark.parametrize("fps", [1, 4, 7.5, 10, 25, 29.97])
@pytest.mark.parametrize("video", ["steady", "uneven"])
def test_a_stream_meets_the_frames_that_sampling_by_time_meets(video, fps, request):
    path = request.getfixturevalue(video)
    info = probe(path)
    start, end = info.pts_seconds[0], info.duration_seconds
    num_frames = round((end - start) * fps - 1e-3)
    (times,) = window_times(start, end, num_frames=num_frames, fps=fps, stride_seconds=100)
    frames = list(stream_frames(str(path), fps=fps))
    wanted = frames_at(info.pts_seconds, times)
    assert [read_number(frame.pixels) for frame in frames] == wanted.tolist()
    np.testing.assert_allclose([frame.pts_seconds for frame in frames], info.pts_seconds[wanted], atol=1e-6)


def test_a_rate_above_the_videos_repeats_frames_and_one_far_below_gives_the_last(steady):
    assert numbers(steady, fps=20)[:6] == [0, 0, 1, 1, 2, 2]
    assert numbers(steady, fps=0.01) == [39]


@pytest.mark.parametrize(("fps", "start"), [(1, None), (7.5, None), (25, None), (4, 0.305)])
def test_every_frame_is_shown_once_and_the_sampled_ones_are_marked(uneven, fps, start):
    frames = list(stream_frames(str(uneven), fps=fps, start_seconds=start, every_frame=True))
    shown = [read_number(frame.pixels) for frame in frames]
    assert sorted(set(shown)) == list(range(0 if start is None else 2, 12))
    sampled = [number for number, frame in zip(shown, frames, strict=True) if frame.is_sampled]
    assert sampled == numbers(uneven, fps=fps, start_seconds=start)
    between = [number for number, frame in zip(shown, frames, strict=True) if not frame.is_sampled]
    assert len(between) == len(set(between) - set(sampled))


def test_starting_later_gives_the_rest_of_the_same_moments(steady):
    assert numbers(steady, fps=5, start_seconds=2.0) == numbers(steady, fps=5)[10:]


def test_a_start_behind_the_end_is_refused(steady):
    with pytest.raises(VideoError, match="no frame after 99 s can be decoded") as caught:
        numbers(steady, fps=5, start_seconds=99)
    assert caught.value.reason == "NoFrames"


def test_only_the_frames_asked_for_are_read(steady):
    frames = stream_frames(str(steady), fps=10)
    assert [read_number(next(frames).pixels) for _ in range(3)] == [0, 1, 2]
    frames.close()


def test_a_file_that_is_none_is_refused_as_everywhere(tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        next(stream_frames(str(tmp_path / "gone.mp4"), fps=5))


def test_a_camera_that_is_not_there_and_a_scheme_that_is_unsafe_are_refused():
    with pytest.raises(VideoError, match="/dev/video97: cannot be read"):
        next(stream_frames("97", fps=5))
    with pytest.raises(VideoError, match="scheme 'file'; wanted one of http"):
        next(stream_frames("file:///etc/passwd", fps=5))


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(VideoError, match=r"http://127\.0\.0\.1:9/x\.mp4: cannot be read") as caught:
        next(stream_frames("http://me:hunter2@127.0.0.1:9/x.mp4?token=hunter2", fps=5))
    assert "hunter2" not in str(caught.value)


def test_a_video_is_read_over_http(steady):
    import functools
    import http.server

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=steady.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        got = numbers(f"http://127.0.0.1:{server.server_address[1]}/{steady.name}", fps=5)
        server.shutdown()
    assert got == numbers(steady, fps=5)


@pytest.mark.parametrize(
    "address", ["http://[bad", "http://user:p/w@127.0.0.1:9/x", "http://user:p#w@127.0.0.1:9/x?t=secret"]
)
def test_no_way_to_write_an_address_shows_its_password_or_is_a_bug(address):
    with pytest.raises(VideoError) as caught:
        next(stream_frames(address, fps=1))
    assert not any(word in str(caught.value) for word in ("p/w", "p#w", "user", "secret"))


def test_a_cut_file_and_one_with_times_of_decoding_are_no_streams(tmp_path):
    whole = mux(tmp_path / "whole.mkv", frames=numbered_frames(200), gop=10)
    short = cut(whole, tmp_path / "short.mkv", 0.6)
    with pytest.raises(VideoError) as caught:
        list(stream_frames(str(short), fps=25))
    assert caught.value.reason in ("Truncated", "DecodeError")
    with pytest.raises(VideoError) as caught:
        list(stream_frames(str(mux(tmp_path / "a.wmv", frames=numbered_frames(50))), fps=25))
    assert caught.value.reason == "UnorderedTimes"
    with pytest.raises(VideoError) as caught:
        list(stream_frames(str(mux(tmp_path / "a.h264", frames=numbered_frames(50))), fps=25))
    assert caught.value.reason == "NoTimestamps"


def test_a_live_clock_that_jumps_ahead_is_taken_as_set_anew_and_a_files_is_not(tmp_path):
    path = tmp_path / "gap.ts"
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0", "tune": "zerolatency"})
        stream.width = stream.height = 64
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 10 * number, np.uint8))
            frame.pts, frame.time_base = number + 1000 * (number >= 10), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: send(server.accept()[0], path.read_bytes()), daemon=True).start()
        live = list(stream_frames(f"tcp://127.0.0.1:{server.getsockname()[1]}", fps=10))
    assert len(live) == 20
    assert live[-1].pts_seconds - live[0].pts_seconds == pytest.approx(1.9, abs=0.01)
    assert len(list(stream_frames(str(path), fps=10))) == 1020


def send(connection, data):
    with connection:
        connection.sendall(data)
