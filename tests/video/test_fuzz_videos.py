"""Thousands of damaged videos through the guarded decoder: a clip or a reason each, and never anything else."""

import random
from collections import Counter

import numpy as np
import pytest
from clip_factory import mux, write_gif

from vidflow.errors import VideoError
from vidflow.video.encode import encode_clip
from vidflow.video.ffmpeg import probe
from vidflow.video.sandbox import Sandbox

NUM_INPUTS = 20_000
SEEDS = {
    "mp4": ("libx264", {}),
    "mkv": ("libx264", {}),
    "webm": ("libvpx", {}),
    "avi": ("mpeg4", {"bf": "2"}),
    "flv": ("flv", {}),
    "ts": ("libx264", {}),
    "mpg": ("mpeg1video", {}),
    "wmv": ("wmv2", {}),
    "mov": ("mjpeg", {}),
    "nut": ("mpeg4", {}),
    "mxf": ("mpeg2video", {}),
}
ENCODING = {"decoder": "pyav", "size": 16, "resize_filter": "box", "image_format": "jpg", "jpeg_quality": 80}


def seeds(folder):
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 255, (32, 48, 3), dtype=np.uint8) for _ in range(6)]
    for suffix, (codec, options) in SEEDS.items():
        pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        path = mux(folder / f"seed.{suffix}", codec, frames=frames, pixel_format=pixel_format, codec_options=options)
        yield suffix, path.read_bytes()
    yield "gif", write_gif(folder / "seed.gif", 6).read_bytes()


def mutate(content, generator):
    """Flip bits, overwrite, cut, repeat or drop a part, mostly near the start, where headers are."""
    changed = bytearray(content)
    for _ in range(generator.choice([1, 1, 1, 2, 4, 16])):
        at = (
            generator.randrange(len(changed))
            if generator.random() < 0.6
            else generator.randrange(min(512, len(changed)))
        )
        match generator.randrange(6):
            case 0 | 1:
                changed[at] ^= 1 << generator.randrange(8)
            case 2:
                changed[at : at + 4] = generator.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
            case 3:
                changed[at] = generator.randrange(256)
            case 4:
                del changed[at : at + generator.randrange(1, 200)]
            case _:
                changed[at:at] = changed[at : at + generator.randrange(1, 200)]
        if len(changed) < 8:
            break
    return bytes(changed)


def look(path):
    """Probe a file and make a clip of it."""
    info = probe(path)
    times = np.linspace(info.pts_seconds[0], info.pts_seconds[-1], 3)
    return len(encode_clip(path, times.tolist(), **ENCODING).images)


def outcomes(folder, num_inputs, *, seed):
    generator, found = random.Random(seed), Counter()
    originals = list(seeds(folder))
    with Sandbox(timeout_seconds=20, memory_mib=1024) as sandbox:
        for number in range(num_inputs):
            suffix, content = originals[number % len(originals)]
            path = folder / f"{number % 7}.{suffix}"
            path.write_bytes(mutate(content, generator))
            try:
                assert sandbox.call(look, path) == 3
                found["clip"] += 1
            except VideoError as error:
                found[error.reason] += 1
                if error.reason in ("DecoderFailed", "DecoderCrashed", "Timeout", "OutOfMemory"):
                    print(error)
    return found


def test_a_few_damaged_videos_are_clips_or_rejects(tmp_path):
    found = outcomes(tmp_path, 300, seed=1)
    assert found["clip"] > 30
    assert found["DecoderFailed"] == 0, found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_damaged_videos_are_clips_or_rejects(tmp_path):
    found = outcomes(tmp_path, NUM_INPUTS, seed=0)
    print(found)
    assert sum(found.values()) == NUM_INPUTS
    assert found["clip"] > NUM_INPUTS / 10
