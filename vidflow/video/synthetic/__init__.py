"""Render videos with ground truth, in pairs of classes that differ only in the direction of time.

A moving pinhole camera films a textured room with flat objects at metric depths. A saturated target
moves as its class says. Muted distractors, camera shake and a post in front make the task harder.
Everything except the target's path is as likely forwards in time as backwards, and each class is its
partner played backwards. So a model that ignores the order of frames cannot tell the two apart.
"""

from vidflow.video.synthetic.clips import (
    RenderedVideo,
    VideoSpec,
    list_videos,
    render_video,
    video_path,
    write_video,
)
from vidflow.video.synthetic.motion import CLASS_NAMES, ClassName, reverse_of

__all__ = [
    "CLASS_NAMES",
    "ClassName",
    "RenderedVideo",
    "VideoSpec",
    "list_videos",
    "render_video",
    "reverse_of",
    "video_path",
    "write_video",
]
