"""The settings of an experiment: one frozen dataclass per YAML section, in the order of the flow.

`vidflow settings` prints the docstring below each field: the meaning, the unit in brackets at the end of its first
paragraph, and a section `Choices:` that explains each word of a `Literal`. The classes in vidflow.models explain the
words of `CoreName` and `TaskName`.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from vidflow.config.tasks import Mode, TaskName

Count = Annotated[int, Field(ge=1, lt=2**31)]
# At most eleven days: poll(2) cannot wait longer.
Seconds = Annotated[float, Field(ge=1e-3, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Bound = Annotated[float, Field(ge=-1e30, le=1e30)]
Deviation = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
SplitName = Annotated[str, Field(min_length=1, max_length=4096)]
Scalar = str | int | float | bool
AxisValue = Scalar | None
MaskChoice = Literal["random", "importance"]
MaskLoss = Literal["mse", "cosine"]

EncoderFamily = Literal["image", "vivit", "videomae", "timesformer", "motionformer", "vjepa2"]
Feed = Literal["features", "prefix", "shards"]
CoreName = Literal[
    "identity", "mean", "gru", "gated_transformer", "mamba", "mamba_mix", "gated_mamba_mix", "causal_attention", "vtm"
]
SourceFormat = Literal[
    "manifest",
    "folder",
    "webdataset",
    "mmaction",
    "kinetics",
    "ssv2",
    "epic_kitchens_100",
    "ucf101",
    "hmdb51",
    "perception_test",
]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """Rendered videos with ground truth, to try vidflow without a data set."""

    __pydantic_config__ = _STRICT
    num_train: Count = 600
    """Training videos. [videos]"""
    num_val: Count = 200
    """Validation videos. [videos]"""
    size: Annotated[int, Field(ge=16, le=2**14, multiple_of=2)] = 96
    """Side of the square frame, an even number. [pixels]"""
    num_frames: Annotated[int, Field(ge=2, lt=2**31)] = 24
    """Length of a video. [frames]"""
    fps: Count = 12
    """Frame rate of a video. [frames per second]"""
    difficulty: Fraction = 0.3
    """Strength of camera motion, distractors and occluders."""
    camera_travel: Fraction = 0.5
    """Largest distance that the camera moves along one axis, from the middle of the clip to either end. [metres]"""
    camera_turn: Annotated[float, Field(ge=0, le=15)] = 4.0
    """Largest angle that the camera turns sideways in the same time; half of it around other axes. [degrees]"""
    annotations: bool = False
    """Whether boxes, points, depth and camera poses are written beside each video."""
    seed: Seed = 0
    """Seed of all rendered videos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Which frames of a video make a clip; always chosen by time, never by frame number."""

    __pydantic_config__ = _STRICT
    mode: Literal["uniform", "center", "windows", "first", "segments", "spread"] = "uniform"
    """How the frames of a clip are spread over the video, or over the span that the manifest gives.

    Choices:
        uniform: One clip: frames at the middles of `num_frames` equal parts of the span.
        center: One clip: frames `1 / fps` seconds apart around the middle of the span.
        windows: Several clips: a window of `num_frames / fps` seconds slides over the span by `stride_seconds`.
        first: One clip: frames `1 / fps` seconds apart from the start of the span on.
        segments: One clip: middle frames of `num_frames` equal segments, counted and rounded in whole frames.
        spread: `num_clips` clips: windows of `num_frames / fps` seconds from start to end; one is in the middle.
    """
    num_frames: Count = 16
    """Length of a clip. [frames]"""
    fps: Annotated[float, Field(ge=1e-3, le=1e4)] = 8.0
    """Frame rate within a clip, for all modes but `uniform` and `segments`. [frames per second]"""
    stride_seconds: Seconds = 2.0
    """Time from the start of a window to the start of the next, for `windows`. [seconds]"""
    num_clips: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of clips of a video, for `spread`. [clips]"""

    @property
    def has_several(self) -> bool:
        """Whether a video may have several clips."""
        return self.mode == "windows" or (self.mode == "spread" and self.num_clips > 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """How a published data set is read, if `video.format` names one."""

    __pydantic_config__ = _STRICT
    fold: Annotated[int, Field(ge=1, le=3)] = 1
    """Which of the three published splits of `ucf101` and `hmdb51`."""
    epic_label: Literal["verb", "noun", "action"] = "action"
    """Classes of `epic_kitchens_100`.

    Choices:
        verb: What is done, such as `cut`.
        noun: To what, such as `onion`.
        action: Both, such as `cut onion`.
    """
    box_gap_seconds: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Longest time between two boxes of `perception_test` across which boxes are interpolated. [seconds]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """Where videos come from and how they become frames."""

    __pydantic_config__ = _STRICT
    manifest: str | None = None
    """Folder of videos, CSV, JSONL or Parquet file with the columns `path,label,split`, WebDataset tars, mmaction2 list
    or published annotations; null: the videos that `synthetic` describes. A table may be in an object store."""
    format: SourceFormat | None = None
    """What `manifest` is; null: what its name and content show. Published data sets must be named.

    Choices:
        manifest: CSV, JSONL or Parquet file with the columns `path,label,split`.
        folder: Folder with a sub-folder per class, with or without `train` and `val` above.
        webdataset: A tar, or a folder of tars, of videos with `.json`, `.cls` or `.txt`; as video2dataset writes.
        mmaction: Text file with a video and the number of its class on each line.
        kinetics: Folder of the CSV lists of Kinetics-400, 600 or 700, or one of them.
        ssv2: Folder of the JSON files of Something-Something v2.
        epic_kitchens_100: Folder of the CSV files of EPIC-KITCHENS-100.
        ucf101: Folder of the lists of UCF101.
        hmdb51: Folder of the lists of HMDB51.
        perception_test: Folder of the JSON files of Perception Test.
    """
    video_root: str | None = None
    """Second folder that paths in the manifest may point into; the first is the manifest's own folder. For `mmaction`
    and published data sets: the folder of the videos; null: that of the manifest."""
    split_seed: Seed = 0
    """Seed of the split of videos for which `manifest` names none."""
    published: Published = field(default_factory=Published)
    """Options of published data sets."""
    synthetic: Synthetic = field(default_factory=Synthetic)
    """Rendered videos, used if `manifest` is null."""
    decoder: Literal["decord", "pyav"] = "pyav"
    """Which library decodes videos.

    Choices:
        decord: Takes twice as long, because PyAV also decodes, to find damage; PyAV replaces it where it is inexact.
        pyav: FFmpeg's own libraries, frame by frame.
    """
    sampling: Sampling = field(default_factory=Sampling)
    """Which frames make a clip."""
    size: Annotated[int, Field(ge=8, le=2**14)] = 224
    """Side of the square crop. [pixels]"""
    short_side: Annotated[int, Field(ge=8, le=2**14)] | None = None
    """Short side after resizing, at least `size`; null: `size`. Annotations want null. [pixels]"""
    crop: Literal["center", "left", "right", "three"] = "center"
    """Where the square is on the long side. Annotations want the centre.

    Choices:
        center: In the middle.
        left: At the left, or at the top of a picture that is higher than wide.
        right: At the right, or at the bottom.
        three: In the middle for the training split. A clip of another split becomes three clips of its video: middle,
            left and right. Classification wants `score_by: video`.
    """
    splits: list[str] | None = None
    """Splits whose videos are used; null: all."""
    resize_filter: Literal["bilinear", "bicubic", "lanczos", "box"] = "bicubic"
    """Resampling filter, with antialiasing; another filter gives other features.

    Choices:
        bilinear: Weighted mean of the nearest pixels.
        bicubic: Cubic curve through the nearest pixels; sharper, and what most encoders were trained with.
        lanczos: Windowed sinc over more pixels; the sharpest, with faint rings at edges.
        box: Plain mean of the pixels that a new pixel covers.
    """

    @property
    def is_central(self) -> bool:
        """Whether a clip shows the whole central square of its video."""
        return self.crop == "center" and self.short_side in (None, self.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """How clips are packed into WebDataset tars."""

    __pydantic_config__ = _STRICT
    clips_per_shard: Count = 64
    """Size of one tar, the unit of distributed work. [clips]"""
    image_format: Literal["jpg", "png"] = "jpg"
    """How frames are stored in the tars.

    Choices:
        jpg: Lossy, with `jpeg_quality`.
        png: Lossless and four times larger.
    """
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality on libjpeg's scale; used by `jpg` only."""
    max_reject_fraction: Fraction = 0.05
    """Largest share of the manifest's rows that may be rejected; if more are, the stage fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """The frozen encoder."""

    __pydantic_config__ = _STRICT
    family: EncoderFamily = "image"
    """What the encoder is.

    Choices:
        image: An image encoder of timm; frames do not see one another.
        vivit: ViViT, joint attention over space and time.
        videomae: VideoMAE, joint attention over space and time.
        timesformer: TimeSformer, attention over time, then over space.
        motionformer: Motionformer, attention along trajectories.
        vjepa2: V-JEPA 2, joint attention with rotary positions.
    """
    name: str = "vit_small_patch16_dinov3.lvd1689m"
    """For `image`: a timm ViT (DINOv2, DINOv3, CLIP, SigLIP, MAE, AugReg)."""
    weights: str = "hub"
    """For `image`: `hub` (the weights that timm downloads), a .safetensors or .pt file, an .npz file of RVM, or
    `random:SEED`. For video transformers: an id on the Hugging Face hub such as `MCG-NJU/videomae-base`, a folder with
    `config.json` and `model.safetensors`, a .safetensors, .pt or .pyth file, or `random:SEED`."""
    size: str | None = None
    """For video transformers with a file or random weights: size of the model, such as `base` or `tiny`; null: the
    first of its family."""
    settings: dict[str, Scalar | list[Scalar]] = field(default_factory=dict)
    """For video transformers: settings of the model's configuration that differ, by the names of `transformers`."""
    img_size: Count = 224
    """For `image`: side of the encoder's input: a multiple of its patch size, at most `video.size`. [pixels]"""
    mean: tuple[float, float, float] | None = None
    """Channel means of the input, each in [0, 1]; null: the model's own, from timm or RVM."""
    std: tuple[Deviation, Deviation, Deviation] | None = None
    """Channel standard deviations of the input; null: the model's own, from timm or RVM."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format in which the encoder runs; features are stored in float16.

    Choices:
        auto: bfloat16 on a GPU, float32 on a CPU.
        float32: Single precision.
        bfloat16: Half the memory; the range of float32 with 8 bits of precision.
        float16: Half the memory; 11 bits of precision, numbers up to 65504.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Reducer:
    """A token reducer and its budget."""

    __pydantic_config__ = _STRICT
    name: str = "none"
    """Which token reducer.

    Choices:
        none: Keep every token.
    """
    place: Literal["input", "block", "post"] | None = None
    """Where the reducer acts; null: the first of these places that it supports.

    Choices:
        input: Before the encoder, on pixels.
        block: Inside the encoder, between attention and MLP.
        post: After the encoder, on cached tokens.
    """
    settings: dict[str, Scalar | list[Scalar]] = field(default_factory=dict)
    """Settings of the reducer; `vidflow settings features.NAME.reducer.name` lists the settings of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSet:
    """Which outputs of the encoder are stored."""

    __pydantic_config__ = _STRICT
    depths: list[int] = field(default_factory=lambda: [-1])
    """Blocks whose output is stored, counted from 0; negative numbers count from the last."""
    normalize: bool = True
    """Whether the encoder's final norm is applied to each stored depth."""
    reducer: Reducer = field(default_factory=Reducer)
    """Token reduction."""
    views: Annotated[int, Field(ge=1, le=1000)] = 1
    """Stored views of each training clip: the plain one, and others that `augmentation` draws; an epoch uses one of
    them per clip. Other clips have the plain view only. [views]"""
    augmentation: str | None = None
    """Name of the augmentation that the views after the first are drawn from; needed if `views` is more than 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes of a training clip, drawn once per clip, so that all its frames change alike. All are off."""

    __pydantic_config__ = _STRICT
    crop_area: tuple[Share, Share] | None = None
    """Smallest and largest area of the random crop, as a share of the frame; null: no crop. Published: [0.08, 1]."""
    crop_aspect: tuple[Ratio, Ratio] = (0.75, 4 / 3)
    """Smallest and largest width of the crop divided by its height."""
    flip: Fraction = 0.0
    """How often a clip is mirrored left to right. Boxes, points, depth and camera poses are mirrored with it."""
    flip_labels: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of classes that a mirrored clip exchanges, such as `[moving left, moving right]`."""
    color_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Strength: brightness, contrast and saturation change by a factor in 1 - strength to 1 + strength, and the hue by
    a tenth of strength of the colour circle at most."""
    randaugment_layers: Annotated[int, Field(ge=0, le=16)] = 0
    """Operations of RandAugment in a row, each drawn by itself. Published: 4, or 2. [operations]"""
    randaugment_magnitude: Annotated[int, Field(ge=0, le=10)] = 7
    """Strength of RandAugment's operations, from 0 to 10."""
    temporal_shift: Annotated[int, Field(ge=0, le=1000)] = 0
    """Largest shift of a clip in time, in either direction; frames at the border are repeated. [frames]"""
    erasing: Fraction = 0.0
    """How often a rectangle of a clip is covered with grey."""


AdapterPlace = Literal["attention_in", "attention_out", "mlp_in", "mlp_out"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptation:
    """What is trained inside an image encoder of timm; everything else in it stays frozen.

    Source: ZeroI2V (Li et al., ECCV 2024, arXiv 2310.01324); `interpolate_after` is reconstructed from the abstract of
    InTI (Zhang et al., ECCV 2024, arXiv 2408.06840).
    """

    __pydantic_config__ = _STRICT
    first_block: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """First block that is adapted, counted from 0; the blocks below it stay as they are."""
    places: list[AdapterPlace] = field(default_factory=lambda: ["attention_in", "attention_out", "mlp_in", "mlp_out"])
    """Where each adapted block has a linear adapter, which is merged into the weights after training.

    Choices:
        attention_in: Before the projections to queries, keys and values.
        attention_out: Behind the projection of the heads' output.
        mlp_in: Before the MLP.
        mlp_out: Behind the MLP.
    """
    rank_ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Rank of an adapter, as a share of the width of a token."""
    scale: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Factor of an adapter's output; published: 0.5 for Kinetics-400, UCF101 and HMDB51, 1 for SSv2."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of an adapter's hidden units that are dropped in training."""
    offsets: list[Annotated[int, Field(gt=-(2**15), lt=2**15)]] = field(default_factory=list)
    """For each attention head, how many frames later its keys and values are: -1 is the frame before. A head whose
    frame is not in the clip reads its own frame. Empty: every head reads its own frame. With no offset above 0 and
    no temporal embedding, a stream can be encoded frame by frame. [frames]"""
    temporal_embedding: bool = True
    """Whether all tokens of a frame get a trained vector for the frame's number; then clips must have as many frames as
    in training."""
    interpolate_after: list[Count] = field(default_factory=list)
    """Numbers of blocks after which each two neighbouring frames become one (InTI, reconstructed). [blocks]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One training run; every field may be an axis of the search."""

    __pydantic_config__ = _STRICT
    task: TaskName = "classification"
    """What is predicted."""
    features: str = "base"
    """Name of the feature set to train on. With `feed: shards` it says which depths the encoder gives, and is only
    stored if another trial reads it."""
    feed: Feed = "features"
    """What a batch is made of, and so how much of the encoder runs within the trial.

    Choices:
        features: Stored tokens; the encoder does not run.
        prefix: Stored output of block k - 1 (`depths: [k-1]`, `normalize: false`); the blocks from k on run.
        shards: Frames; the whole encoder runs in every epoch, at 2.5 times the cost of extraction if it is adapted.
    """
    adaptation: str | None = None
    """Name of the adaptation of the encoder that is trained; null: the encoder stays as it is."""
    augmentation: str | None = None
    """Name of the augmentation of training clips, for `feed: shards`; null: none."""
    encoder_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of what is trained in the encoder, as a share of `learning_rate`."""
    core: CoreName = "gated_transformer"
    """Temporal core: what connects the frames of a clip."""
    num_layers: Count = 4
    """Depth of the core; `vtm` always has three blocks. [layers]"""
    num_heads: Count | None = None
    """Attention heads of the core; null: the published number for the width. [heads]"""
    vtm_groups: tuple[Count, Count, Count] | None = None
    """For `vtm`: length of a group in each of its blocks, each a multiple of the one before; the last must divide the
    length of a clip. null: a tenth of the clip, a half of it, and the clip, as whole frames allow; the published
    [6, 30, 60] for 60. Only [1, 1, 1] can be streamed. Takes no list of values as an axis. [frames]"""
    vtm_factor: Count = 6
    """For `vtm`: each block leaves one token of so many, rounded up. 1 merges nothing. [tokens]"""
    vtm_share: Fraction = 1.0
    """For `vtm`: share of the other tokens that are merged, the most similar ones; the rest stay. Published: 1, and 0.8
    in an appendix."""
    token_adapter: Fraction = 0.0
    """Rank of a trained adapter between the encoder's tokens and the core, as a share of their width; 0: no adapter. It
    starts as the identity. Source: Optimizing ViViT training (Gowda et al., ECCV 2024), whose adapter is not published:
    ours is a bottleneck with GELU."""
    mix_depths: bool = True
    """Whether several depths are mixed by trained BatchNorm and MLP; needs more than one depth."""
    unmerge: bool = True
    """Whether reduced tokens are put back on the full grid of patches. Cores with a state per patch need this. If
    false, cores see the tokens as stored, and every frame must have the same number of tokens."""
    standardize: bool = False
    """Whether each channel of the tokens is scaled to mean 0 and standard deviation 1, measured on the training split.
    If true, `camera_pose` also uses batch norm instead of layer norm. Published: false."""
    readout: Literal["attention", "class_token"] = "attention"
    """How a class is read from a frame's tokens.

    Choices:
        attention: A learned query attends to all tokens; `readout_dim` wide, with `readout_heads`.
        class_token: A linear layer on the class token alone, behind dropout of 0.5; the head of ZeroI2V if `core` is
            `mean`. Only for `classification` and encoders with a class token. Behind `vtm`, on its mean token.
    """
    readout_dim: Count = 768
    """Width of the readout. [channels]"""
    readout_heads: Count = 12
    """Attention heads of the readout; must divide `readout_dim`. [heads]"""
    epochs: Count = 20
    """Passes over the training split. [epochs]"""
    batch_size: Count = 32
    """Size of a batch, one optimizer step. [clips]"""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decoupled weight decay; biases, norms, queries and state matrices are exempt."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps in which the learning rate rises linearly. Then it falls to zero along a cosine."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm."""
    every_frame_weight: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the mean loss over all frames, which is added to the loss at the last frame (classification)."""
    train_fraction: Share = 1.0
    """Share of the videos of each class of the training split that are used, at least one, with all their clips; drawn
    by `seed`. Smaller shares are part of larger ones."""
    init_from: str | None = None
    """Trial whose core is the start of this one's, such as one of the task `masked_tokens`: the key of a trial under
    `root`; a trial's folder or its `best.safetensors`, also of another root; or the id of its run in MLflow. Core,
    width, layers and what is in front of the core must be the same. null: random weights."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the frames of a clip that are hidden, rounded up (masked_tokens)."""
    mask_choice: MaskChoice = "random"
    """Which frames are hidden (masked_tokens).

    Choices:
        random: Others in every epoch, drawn by `seed`.
        importance: Those most similar to the frame before; what changed stays visible. Published.
    """
    mask_loss: MaskLoss = "mse"
    """How a predicted token is compared with the hidden one (masked_tokens).

    Choices:
        mse: Mean squared error of tokens scaled to a mean square of 1.
        cosine: 1 minus the cosine.
    """
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread evenly over all classes, in the training loss only (classification)."""
    score_by: Literal["clip", "video"] = "clip"
    """What the metrics count (classification).

    Choices:
        clip: Each clip by itself.
        video: Each row of the manifest, by the mean of its clips' probabilities; see `video.sampling.num_clips`.
    """
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of a training step.

    Choices:
        auto: bfloat16 on a GPU, float32 on a CPU.
        float32: Single precision throughout.
        bfloat16: Autocast: matrix products in bfloat16, weights and sensitive steps in float32.
    """
    seed: Seed = 0
    """Seed of initial weights and of the order of clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """An axis of the search: a list of values, or a range from which `random` and `optuna` draw numbers."""

    __pydantic_config__ = _STRICT
    low: Bound
    """Smallest value."""
    high: Bound
    """Largest value."""
    log: bool = False
    """Whether values are spread evenly on a logarithmic scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitNames:
    """Which splits of the videos trials use."""

    __pydantic_config__ = _STRICT
    train: SplitName = "train"
    """Split that trials train on."""
    val: SplitName = "val"
    """Split by which epochs and trials are ranked."""
    test: SplitName | None = None
    """Split on which the best epoch of a trial that ran all its epochs is measured once, as `test/...`; null: none."""

    @property
    def used(self) -> tuple[str, ...]:
        """All of them."""
        return (self.train, self.val, *([self.test] if self.test else []))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """The sweep: which trials are run, and which are stopped early."""

    __pydantic_config__ = _STRICT
    trial: Trial = field(default_factory=Trial)
    """Settings of every trial that no axis replaces."""
    axes: dict[str, list[AxisValue] | Range] = field(default_factory=dict)
    """Fields of `trial` and the values they take: for each field a list, or `{low, high, log}` to draw numbers from."""
    splits: SplitNames = field(default_factory=SplitNames)
    """Names of the splits."""
    algorithm: Literal["grid", "random", "optuna"] = "grid"
    """How trials are drawn from the axes.

    Choices:
        grid: All combinations of the values of the axes.
        random: `num_samples` combinations, each value drawn by itself.
        optuna: `num_samples` trials, each chosen by Optuna's TPE from the results so far.
    """
    num_samples: Count = 16
    """Size of a `random` or `optuna` search. [trials]"""
    scheduler: Literal["fifo", "asha"] = "fifo"
    """Whether trials may be stopped early.

    Choices:
        fifo: Every trial runs all its epochs.
        asha: Trials that are behind others after the same number of epochs are stopped.
    """
    asha_grace_epochs: Count = 3
    """How long a trial runs before `asha` may stop it. [epochs]"""
    objective: str | None = None
    """Metric by which epochs and trials are ranked; null: the task's metric."""
    mode: Mode | None = None
    """Whether a larger objective is better; null: as for the task's metric.

    Choices:
        max: Larger is better.
        min: Smaller is better.
    """
    seed: Seed = 0
    """Seed of a `random` or `optuna` search."""


VideoFamily = Literal["vivit", "videomae", "timesformer", "motionformer", "vjepa2"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoModel:
    """A pre-trained video classifier to evaluate."""

    __pydantic_config__ = _STRICT
    family: VideoFamily
    """Which architecture.

    Choices:
        vivit: ViViT, joint attention over space and time (Arnab et al., ICCV 2021, model 1).
        videomae: VideoMAE, joint attention without a class token (Tong et al., NeurIPS 2022).
        timesformer: TimeSformer, attention over time and then over space (Bertasius et al., ICML 2021).
        motionformer: Motionformer, attention along trajectories (Patrick et al., NeurIPS 2021).
        vjepa2: V-JEPA 2 with its probe for classification (Assran et al., 2025).
    """
    weights: str
    """Id on the Hugging Face hub, folder with `config.json` and `model.safetensors`, file of a state dict, or
    `random:SEED`."""
    size: str | None = None
    """Name of the size, such as `base` or `tiny`, for a file or random weights; null: the family's usual one."""
    settings: dict[str, Scalar | list[Scalar]] = field(default_factory=dict)
    """Settings of the library's configuration that differ from the checkpoint's or the size's, by its names."""
    fps: Annotated[float, Field(gt=0, le=1e4)] | Literal["uniform"] | None = None
    """Frame rate that the weights were trained on; null: the published model's. [frames per second]

    Choices:
        uniform: No rate: frames spread over the whole video, as for Something-Something.
    """
    class_names: dict[str, str] = field(default_factory=dict)
    """For weights without names: a text file with a class name per line per head: `class`, or `verb` and `noun`."""
    r: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = None
    """Tokens removed per block for this model; null: `evaluate.axes.r`."""
    reducer: dict[str, Scalar | list[Scalar]] = field(default_factory=dict)
    """Further settings of the token reducer, such as `order`, `scope`, `threshold` (used by `hybrid` alone) or
    `proportional_attention`; null: as published."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateAxes:
    """The grid of points: every r above 0 with every mode and schedule; r = 0 is always evaluated, once."""

    __pydantic_config__ = _STRICT
    r: list[Annotated[int, Field(ge=0, lt=2**31)]] = field(default_factory=lambda: [0])
    """Tokens removed per block, on average over the blocks; at most half of a block's tokens are. [tokens]"""
    mode: list[Literal["merge", "drop", "hybrid", "random_merge", "random_drop"]] = field(
        default_factory=lambda: ["merge"]
    )
    """What happens to the removed tokens.

    Choices:
        merge: The most similar pairs become their mean (ToMe).
        drop: One token of each of the most similar pairs is dropped.
        hybrid: As `merge`, but a token less similar than `threshold` replaces its partner.
        random_merge: As `merge`, with random pairs: a control.
        random_drop: As `drop`, with random tokens: a control.
    """
    schedule: list[Literal["constant", "decreasing", "increasing"]] = field(default_factory=lambda: ["constant"])
    """How removal is spread over the blocks.

    Choices:
        constant: The same number in every block.
        decreasing: From twice the average in the first block to none in the last.
        increasing: From none in the first block to twice the average in the last.
    """
    seed: list[Seed] = field(default_factory=lambda: [0])
    """Seeds of the random modes; the other modes need none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """What `vidflow evaluate` measures: pre-trained classifiers, or a finished trial, on a split, without training."""

    __pydantic_config__ = _STRICT
    models: dict[str, VideoModel] = field(default_factory=dict)
    """Classifiers by name."""
    axes: EvaluateAxes = field(default_factory=EvaluateAxes)
    """Token reduction."""
    split: str = "val"
    """Split that is measured."""
    protocol: Literal["centre", "paper", "multiview"] = "centre"
    """Which clips of a video are seen.

    Choices:
        centre: One clip in the middle of the video and the central square, normalised as the checkpoint wants.
        paper: As the released configurations of "Video, How Do Your Tokens Merge?" for `data_set`, pixels included.
        multiview: `num_clips` clips, each in one or three squares; the mean of their probabilities decides.
    """
    data_set: Literal["k400", "ssv2", "epic"] | None = None
    """Whose preset `paper` follows.

    Choices:
        k400: The first clip; short side 256, central square of 224.
        ssv2: Middle frames of equal segments; short side 224, left square.
        epic: The first clip of the action; short side 224, central square.
    """
    num_clips: Annotated[int, Field(ge=1, le=1000)] = 4
    """Clips of a video for `multiview`; models whose `fps` is `uniform` see one. [clips]"""
    three_crops: bool = True
    """Whether `multiview` sees a clip in the left, central and right square, or in the central one alone."""
    fit_head: str | None = None
    """Split, such as `train`, on whose labels the last layer of every model is fitted first, without token reduction;
    for weights whose classifier knows other classes. null: the checkpoint's own layer."""
    trial: str | None = None
    """Instead of `models`: folder or MLflow run of a finished trial, measured on `split` of this configuration's
    features of the same name; they may be of another manifest."""
    attention: Literal["fused", "eager"] = "fused"
    """How attention is computed.

    Choices:
        fused: With the fused kernel, which never holds the table of all pairs of tokens.
        eager: With that table, as in the published timings.
    """
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format in which the models run.

    Choices:
        auto: bfloat16 on a GPU, float32 on a CPU.
        float32: Single precision, as published.
        bfloat16: Half the memory; the range of float32 with 8 bits of precision.
        float16: Half the memory; 11 bits of precision, numbers up to 65504.
    """
    clips_per_batch: Count = 8
    """Size of a batch of a model. It changes no prediction. [clips]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The page at the end."""

    __pydantic_config__ = _STRICT
    title: str = "vidflow"
    """Heading of the page."""
    num_examples: Count = 8
    """How many clips the page shows with their predictions. [clips]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """Where MLflow stores runs."""

    __pydantic_config__ = _STRICT
    uri: str | None = None
    """Tracking URI; null: an SQLite file under `root`."""
    experiment: str = "vidflow"
    """Name of the experiment in MLflow."""
    when_away: Literal["refuse", "journal"] = "refuse"
    """What to do if the server does not answer when a command starts. If it stops to answer later, runs always wait.

    Choices:
        refuse: Start nothing.
        journal: Start; what is to be stored waits under `root`, until the server answers or for `vidflow sync`.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResources:
    """Number of workers of a stage, and the resources of each. They change no result."""

    __pydantic_config__ = _STRICT
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPU cores per worker. [cores]"""
    num_gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs per worker; workers with fractions share one. [GPUs]

    Choices:
        auto: If the machines have GPUs, 1 for `extract` and 0.5 for `trials`; 0 for `shard`.
    """
    workers: Count | None = None
    """Number of workers; null: as many as fit on the cluster. [workers]"""
    attempts: Count = 3
    """How often a unit of work is tried if its worker dies. [tries]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResources(StageResources):
    """As for the other stages, where a worker is what trains one trial, and its resources are those of each process."""

    workers_per_trial: Count = 1
    """Processes that train one trial together, each with `num_cpus` and `num_gpus`; with several, `num_gpus: auto` is
    1. Each takes its part of every batch, so gradients and metrics are those of one process, up to rounding and the
    draws of dropout. [processes]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Resources of the machines. They are in no fingerprint."""

    __pydantic_config__ = _STRICT
    ray_address: str | None = None
    """Address of a Ray cluster; null: `RAY_ADDRESS` if it is set, else a cluster on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where workers of `extract` and `trials` compute.

    Choices:
        auto: On the GPU that a worker has, else on the CPU.
        cpu: On the CPU, also if a worker has a GPU; so a cluster that only declares GPUs can be tried.
        cuda: On a GPU; refused if workers have none.
    """
    shard: StageResources = field(default_factory=StageResources)
    """Scanning and decoding."""
    extract: StageResources = field(default_factory=StageResources)
    """Encoding."""
    trials: TrialResources = field(default_factory=TrialResources)
    """Training."""
    wait_for_nodes_seconds: Annotated[float, Field(ge=0)] = 600.0
    """How long to wait on a cluster for a machine that can hold a worker, as an autoscaler may bring it. [seconds]"""
    frames_per_batch: Count = 64
    """Size of a batch of the encoder. [frames]"""
    clips_per_pass: Count | None = None
    """Clips that go through the encoder at a time, in each process of trials that run it; the gradients of a batch are
    summed, so fewer take less memory. Another number is the same up to rounding and the draws of dropout.
    null: the whole batch. [clips]"""
    checkpointing: bool = False
    """Whether trials that run the encoder recompute its blocks backward, which takes less memory and a third more
    time."""
    decode_timeout_seconds: Seconds = 60.0
    """Wall time that one video may take to decode. [seconds]"""
    decode_memory_mib: Annotated[int, Field(ge=256, lt=2**31)] = 4096
    """Memory that the decoder may take for one video. [MiB]"""
    cache: str | None = None
    """Folder on every node for copies of objects, if `root` or videos are in an object store; null:
    `~/.cache/vidflow/objects`."""
    cache_gib: Annotated[float, Field(gt=0, le=1e9)] = 50.0
    """Size of that folder; the copies that were not used for longest are removed first. [GiB]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One experiment."""

    __pydantic_config__ = _STRICT
    root: str = "runs/default"
    """Folder that holds everything the experiment makes, shared by all hosts of the cluster; or a prefix of an object
    store, `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`."""
    video: Video = field(default_factory=Video)
    """Videos and clips."""
    shards: Shards = field(default_factory=Shards)
    """Packing of clips."""
    encoder: Encoder = field(default_factory=Encoder)
    """Frozen encoder."""
    features: dict[str, FeatureSet] = field(default_factory=lambda: {"base": FeatureSet()})
    """Feature sets by name."""
    adaptations: dict[str, Adaptation] = field(default_factory=dict)
    """What trials may train inside the encoder, by name."""
    augmentations: dict[str, Augmentation] = field(default_factory=dict)
    """Random changes of training clips, by name."""
    trials: Trials = field(default_factory=Trials)
    """The sweep."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """Pre-trained classifiers."""
    report: Report = field(default_factory=Report)
    """The page."""
    tracking: Tracking = field(default_factory=Tracking)
    """MLflow."""
    resources: Resources = field(default_factory=Resources)
    """Machines."""

    @property
    def plain_split(self) -> str | None:
        """The split whose clips show one square where those of other splits become three; None: all show one."""
        return self.trials.splits.train if self.video.crop == "three" else None


STAGES = ("synth", "shard", "extract", "sweep", "report")
