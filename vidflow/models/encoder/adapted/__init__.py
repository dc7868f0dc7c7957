"""Image encoders that are trained in a few places: linear adapters, heads that read other frames, InTI."""

from vidflow.models.encoder.adapted.adapter import LinearAdapter
from vidflow.models.encoder.adapted.build import build_adapted
from vidflow.models.encoder.adapted.checks import adaptation_problems, check_adaptation
from vidflow.models.encoder.adapted.cost import count_adapted_macs
from vidflow.models.encoder.adapted.encoder import AdaptedEncoder, EncodedBatch, rank_of
from vidflow.models.encoder.adapted.merge import merge_adapted

__all__ = [
    "AdaptedEncoder",
    "EncodedBatch",
    "LinearAdapter",
    "adaptation_problems",
    "build_adapted",
    "check_adaptation",
    "count_adapted_macs",
    "merge_adapted",
    "rank_of",
]
