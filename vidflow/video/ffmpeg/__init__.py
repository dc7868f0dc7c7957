"""The only door to FFmpeg's libraries through PyAV: probe, decode and write videos."""

import av

from vidflow.video.ffmpeg.decoding import Pictures, decode, pictures
from vidflow.video.ffmpeg.plain import frames_in_order
from vidflow.video.ffmpeg.probing import probe, probed
from vidflow.video.ffmpeg.streaming import SampledFrame, stream_frames
from vidflow.video.ffmpeg.writing import write_h264

av.logging.set_level(None)  # its own complaints go nowhere: ours carry the path and what to do

PYAV_VERSION = f"pyav {av.__version__}"
"""Name and version of this decoder, as clips record it."""

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
