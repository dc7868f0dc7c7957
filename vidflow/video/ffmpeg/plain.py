"""Decode a video in a simple loop: from the start, in order, without checks. For comparison only.

Axes: H and W pixels, 3 the channels red, green, blue.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vidflow.video.ffmpeg.opening import opened


def frames_in_order(path: Path, times: Sequence[float]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield the frame on display at each of the ascending `times` (seconds on the video's clock)."""
    with opened(path) as (container, stream):
        stream.codec_context.thread_count = 1
        frames = container.decode(stream)
        shown, following = next(frames), next(frames, None)
        for time in times:
            while following is not None and (following.time or 0.0) <= time:
                shown, following = following, next(frames, None)
            yield shown.reformat(format="rgb24", threads=1).to_ndarray()
