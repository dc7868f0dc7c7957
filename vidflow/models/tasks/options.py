"""The options that a task is built with."""

from dataclasses import dataclass

from vidflow.config.schema import MaskChoice, MaskLoss
from vidflow.models.cores.blocks import fitting_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Options of all tasks; each task reads only its own. None means the published size, adapted to `readout_dim`.

    Attributes:
        num_depths: Number of tapped depths of the encoder; adapters mix them if there are several.
        num_classes: Classes of `classification`.
        image_size: Side in pixels of the crop that `depth` predicts, a multiple of 8.
        readout_dim: Width of the readout; default: 768 for classification, else 1024, as published.
        readout_heads: Attention heads of the readout.
        class_token: Whether `classification` reads the class token alone, with a linear layer.
        every_frame_weight: Weight of the mean loss over all frames; the last frame's loss has weight 1. Classification.
        label_smoothing: Share of each label that is spread evenly over all classes, in training. Classification.
        standardize: Whether tokens pass a `TokenScale`, which must then be measured or loaded, and `CameraPoseTask`
            has a batch norm in its head.
        unmerge: Whether reduced tokens are put back on the full grid of patches.
        adapter_rank: Rank of the adapter in front of the core; 0: there is none.
        query_hidden_dim: Hidden width of the coordinate encoders; default: half the readout's width.
        head_hidden_dim: Hidden width of the heads of points and pose; default: half the readout's width.
        num_frequencies: Fourier bases of box and point queries; default: 8, or 16 with `reference`.
        mixing_chunk_frames: Frames whose adapter activations are in memory at once; None is all.
        reference: Whether trackers work as published, see `BoxTrackingTask` and `PointTrackingTask`.
        mask_ratio: Share of the frames that `masked_tokens` hides, in (0, 1).
        mask_choice: Which frames it hides.
        mask_loss: How it compares tokens.
    """

    num_depths: int = 1
    num_classes: int | None = None
    image_size: int = 224
    readout_dim: int | None = None
    readout_heads: int | None = None
    class_token: bool = False
    every_frame_weight: float = 0.1
    label_smoothing: float = 0.0
    standardize: bool = False
    unmerge: bool = True
    adapter_rank: int = 0
    query_hidden_dim: int | None = None
    head_hidden_dim: int | None = None
    num_frequencies: int | None = None
    mixing_chunk_frames: int | None = None
    reference: bool = False
    mask_ratio: float = 0.5
    mask_choice: MaskChoice = "random"
    mask_loss: MaskLoss = "mse"

    def readout(self, *, dim: int = 1024, heads: int) -> tuple[int, int]:
        """Return width and heads of an attention readout.

        Args:
            dim: Published width.
            heads: Published heads. Source: Orlova et al. 2026 (arXiv 2605.19137), released inference code.

        Raises:
            ValueError: The heads do not divide the width.
        """
        width = self.readout_dim or dim
        num_heads = self.readout_heads or fitting_heads(width, most=heads)
        if width % num_heads:
            raise ValueError(f"readout_dim {width} does not split into readout_heads {num_heads}; choose a divisor")
        return width, num_heads

    @property
    def bases(self) -> int:
        """Fourier bases of queries."""
        return self.num_frequencies or (16 if self.reference else 8)
