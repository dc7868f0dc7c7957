"""Frozen video transformers: build one, encode clips, classify them, with tokens merged or dropped in the blocks."""

from vidflow.models.encoder.video.build import build_video_classifier, build_video_encoder, with_reduction
from vidflow.models.encoder.video.encoded import EncodedClips
from vidflow.models.encoder.video.encoder import VideoClassifier, VideoEncoder
from vidflow.models.encoder.video.recipe import AttentionKind, VideoRecipe

__all__ = [
    "AttentionKind",
    "EncodedClips",
    "VideoClassifier",
    "VideoEncoder",
    "VideoRecipe",
    "build_video_classifier",
    "build_video_encoder",
    "with_reduction",
]
