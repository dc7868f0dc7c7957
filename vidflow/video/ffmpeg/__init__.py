"""Probe, decode and write videos with FFmpeg's libraries. The only importer of PyAV."""

import av

from vidflow.video.ffmpeg.decoding import Pictures, decode, pictures
from vidflow.video.ffmpeg.plain import frames_in_order
from vidflow.video.ffmpeg.probing import probe, probed
from vidflow.video.ffmpeg.streaming import SampledFrame, stream_frames
from vidflow.video.ffmpeg.writing import write_h264

av.logging.set_level(None)  # our messages carry the path and what to do; FFmpeg's do not

PYAV_VERSION = f"pyav {av.__version__}"
"""Name and version of this decoder, recorded in clips."""

__all__ = [
    "PYAV_VERSION",
    "Pictures",
    "SampledFrame",
    "decode",
    "frames_in_order",
    "pictures",
    "probe",
    "probed",
    "stream_frames",
    "write_h264",
]
