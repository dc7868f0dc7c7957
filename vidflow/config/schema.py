"""What an experiment may say: one frozen dataclass per YAML section, in the order of the flow."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

Count = Annotated[int, Field(ge=1, lt=2**31)]
# Up to eleven days: a wait of more does not fit the milliseconds of poll(2).
Seconds = Annotated[float, Field(ge=1e-3, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Bound = Annotated[float, Field(ge=-1e30, le=1e30)]
Deviation = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Mode = Literal["max", "min"]
Scalar = str | int | float | bool

CoreName = Literal[
    "identity", "mean", "gru", "gated_transformer", "mamba", "mamba_mix", "gated_mamba_mix", "causal_attention"
]
TaskName = Literal["classification", "box_tracking", "point_tracking", "depth", "camera_pose"]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """Rendered videos with ground truth, for trying things where no data set is at hand."""

    __pydantic_config__ = _STRICT
    num_train: Count = 600
    """Training videos."""
    num_val: Count = 200
    """Validation videos."""
    size: Annotated[int, Field(ge=16, le=2**14, multiple_of=2)] = 96
    """Side of the square frame in pixels, even."""
    num_frames: Annotated[int, Field(ge=2, lt=2**31)] = 24
    """Frames per video."""
    fps: Count = 12
    """Frames per second."""
    difficulty: Fraction = 0.3
    """Strength of camera motion, distractors and occluders, 0 to 1."""
    camera_travel: Fraction = 0.5
    """Metres the camera moves at most along one axis, from the middle of the clip to either end, 0 to 1."""
    camera_turn: Annotated[float, Field(ge=0, le=15)] = 4.0
    """Degrees the camera turns at most sideways in the same time, 0 to 15; half as many otherwise."""
    annotations: bool = False
    """Whether boxes, points, depth and camera poses are written beside each video."""
    seed: Seed = 0
    """Seed of everything that is rendered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Which moments of a video become the frames of a clip; always by time, never by stride."""

    __pydantic_config__ = _STRICT
    mode: Literal["uniform", "center", "windows"] = "uniform"
    """`uniform` spreads over the span, `center` takes `fps` from its middle, `windows` slides over all of it."""
    num_frames: Count = 16
    """Frames per clip."""
    fps: Annotated[float, Field(ge=1e-3, le=1e4)] = 8.0
    """Frames per second within a clip, for `center` and `windows`."""
    stride_seconds: Seconds = 2.0
    """Distance between the starts of two windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """Where videos come from and how they become frames."""

    __pydantic_config__ = _STRICT
    manifest: str | None = None
    """CSV, JSONL or Parquet with `path,label,split`; None takes the videos that `synthetic` describes."""
    video_root: str | None = None
    """Folder that absolute paths in the manifest may point into, besides the manifest's own."""
    synthetic: Synthetic = field(default_factory=Synthetic)
    """Rendered videos, used where `manifest` is None."""
    decoder: Literal["decord", "pyav"] = "pyav"
    """Who decodes; `decord` takes twice as long, as PyAV must watch for damage beside it, and hands on what it is not
    proven to decode exactly."""
    sampling: Sampling = field(default_factory=Sampling)
    """Which frames make a clip."""
    size: Annotated[int, Field(ge=8, le=2**14)] = 224
    """Short side after resizing, and side of the square centre crop, in pixels."""
    resize_filter: Literal["bilinear", "bicubic", "lanczos", "box"] = "bicubic"
    """Resampling filter, antialiased; another filter is another feature."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """How clips are packed into WebDataset tars."""

    __pydantic_config__ = _STRICT
    clips_per_shard: Count = 64
    """Clips in one tar, the unit of distributed work."""
    image_format: Literal["jpg", "png"] = "jpg"
    """`png` is lossless and four times larger."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality."""
    max_reject_fraction: Fraction = 0.05
    """The stage fails when more than this share of the manifest's rows is rejected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """The frozen image encoder."""

    __pydantic_config__ = _STRICT
    name: str = "vit_small_patch16_dinov3.lvd1689m"
    """A timm ViT (DINOv2, DINOv3, CLIP, SigLIP, MAE, AugReg)."""
    weights: str = "hub"
    """`hub` (timm's own), a .safetensors or .pt file, an .npz file of RVM, or `random:SEED`."""
    img_size: Count = 224
    """Side of the encoder's input in pixels, a multiple of its patch size, at most `video.size`."""
    mean: tuple[float, float, float] | None = None
    """Channel means of the input in [0, 1]; None takes timm's for this model, or RVM's."""
    std: tuple[Deviation, Deviation, Deviation] | None = None
    """Channel deviations of the input, above 0; None takes timm's for this model, or RVM's."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reducer:
    """A token reducer and its budget; `vidflow.models.reduction` says what each one takes."""

    __pydantic_config__ = _STRICT
    name: str = "none"
    """Name of the reducer; `none` keeps every token."""
    place: Literal["input", "block", "post"] | None = None
    """Where it acts: before the encoder, inside it, or on cached tokens; None is the first place it offers."""
    settings: dict[str, Scalar | list[Scalar]] = field(default_factory=dict)
    """Its keyword arguments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSet:
    """What is kept of the encoder's output."""

    __pydantic_config__ = _STRICT
    depths: list[int] = field(default_factory=lambda: [-1])
    """Blocks whose output is kept, from 0; negative counts from the last."""
    normalize: bool = True
    """Whether the encoder's final norm is applied to each kept depth."""
    reducer: Reducer = field(default_factory=Reducer)
    """Token reduction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One training run on cached features; every field may be an axis of the search."""

    __pydantic_config__ = _STRICT
    task: TaskName = "classification"
    """What is learnt."""
    features: str = "base"
    """Name of a feature set."""
    core: CoreName = "gated_transformer"
    """Temporal core."""
    num_layers: Count = 4
    """Layers of the core."""
    num_heads: Count | None = None
    """Attention heads of the core; None is the published number for the width."""
    mix_depths: bool = True
    """Whether several depths are mixed by trained BatchNorm and MLP; needs more than one depth."""
    unmerge: bool = True
    """Whether reduced tokens are put back on the full grid of patches, as cores that remember by place need it; if
    not, cores see the tokens as they are stored, whose number must be the same in every frame."""
    standardize: bool = False
    """Whether tokens are brought to zero mean and unit deviation per channel, as measured on the training split, and
    the average token that `camera_pose` reads passes batch norm; published is neither."""
    readout_dim: Count = 768
    """Width of the readout."""
    readout_heads: Count = 12
    """Attention heads of the readout."""
    epochs: Count = 20
    """Passes over the training split."""
    batch_size: Count = 32
    """Clips per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decoupled weight decay; biases, norms, queries and state matrices are exempt."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps with linearly rising learning rate; cosine to zero after it."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm."""
    every_frame_weight: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the loss at every frame beside that at the last one (classification)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is bfloat16 autocast on a GPU and float32 on a CPU."""
    seed: Seed = 0
    """Seed of initial weights and of the order of clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A continuous axis of a `random` or `optuna` search."""

    __pydantic_config__ = _STRICT
    low: Bound
    """Smallest value."""
    high: Bound
    """Largest value."""
    log: bool = False
    """Whether values are spread evenly on a logarithmic scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """The sweep: which trials are run, and which are stopped early."""

    __pydantic_config__ = _STRICT
    trial: Trial = field(default_factory=Trial)
    """What all trials share unless an axis says otherwise."""
    axes: dict[str, list[Scalar] | Range] = field(default_factory=dict)
    """Fields of `trial` and the values they take."""
    algorithm: Literal["grid", "random", "optuna"] = "grid"
    """How candidates are drawn from the axes."""
    num_samples: Count = 16
    """Trials of a `random` or `optuna` search."""
    scheduler: Literal["fifo", "asha"] = "fifo"
    """`asha` stops trials that fall behind."""
    asha_grace_epochs: Count = 3
    """Epochs before a trial may be stopped."""
    objective: str | None = None
    """Metric by which epochs and trials are ranked; None is the task's own."""
    mode: Mode | None = None
    """Whether more of it is better; None is the task's own."""
    seed: Seed = 0
    """Seed of a `random` or `optuna` search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The page at the end."""

    __pydantic_config__ = _STRICT
    title: str = "vidflow"
    """Heading of the page."""
    num_examples: Count = 8
    """Clips shown with their predictions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """Where MLflow keeps runs."""

    __pydantic_config__ = _STRICT
    uri: str | None = None
    """Tracking URI; None is a sqlite file under `root`."""
    experiment: str = "vidflow"
    """Experiment name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResources:
    """What one worker of a stage takes, and how many there are; changes no result."""

    __pydantic_config__ = _STRICT
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    """Cores per worker."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per worker; fractions share one."""
    workers: Count | None = None
    """Workers at once; None is as many as the cluster holds."""
    attempts: Count = 3
    """How often a unit of work is tried when its worker dies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Machines; nothing here enters a fingerprint."""

    __pydantic_config__ = _STRICT
    ray_address: str | None = None
    """Ray cluster; None is `RAY_ADDRESS` where set, else a local one."""
    shard: StageResources = field(default_factory=StageResources)
    """Scanning and decoding."""
    extract: StageResources = field(default_factory=StageResources)
    """Encoding."""
    trials: StageResources = field(default_factory=StageResources)
    """Training."""
    frames_per_batch: Count = 64
    """Frames per call of the encoder."""
    decode_timeout_seconds: Seconds = 60.0
    """Wall time one video may take to decode."""
    decode_memory_mib: Annotated[int, Field(ge=256, lt=2**31)] = 4096
    """Memory the decoder may take for one video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One experiment."""

    __pydantic_config__ = _STRICT
    root: str = "runs/default"
    """Folder that holds everything the experiment makes, shared by all hosts of the cluster."""
    video: Video = field(default_factory=Video)
    """Videos in."""
    shards: Shards = field(default_factory=Shards)
    """Clips packed."""
    encoder: Encoder = field(default_factory=Encoder)
    """Frozen encoder."""
    features: dict[str, FeatureSet] = field(default_factory=lambda: {"base": FeatureSet()})
    """Feature sets by name."""
    trials: Trials = field(default_factory=Trials)
    """The sweep."""
    report: Report = field(default_factory=Report)
    """The page."""
    tracking: Tracking = field(default_factory=Tracking)
    """MLflow."""
    resources: Resources = field(default_factory=Resources)
    """Machines."""


STAGES = ("synth", "shard", "extract", "sweep", "report")
