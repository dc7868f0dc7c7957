"""Prediction: run a trained trial on a video of any length, frame by frame, in the video's pixels and class names.

Axes: H and W pixels, O boxes, Q points.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vidflow.config.fingerprints import STAGE_VERSIONS
from vidflow.errors import VidflowError
from vidflow.files import make_local
from vidflow.models.encoder import EncoderDtype, FrozenEncoder, build_encoder
from vidflow.models.encoder.fitting import fit_frames
from vidflow.models.reduction.build import Reducer, build_reducer
from vidflow.models.reduction.controls import InputLowerResolution
from vidflow.models.streaming import StreamingModel
from vidflow.models.tasks import Task
from vidflow.models.tasks.coordinates import rotation_matrix
from vidflow.models.tasks.depth import DepthTask
from vidflow.models.weights import CHECKPOINT_SUFFIXES
from vidflow.objects import is_object_url, to_path
from vidflow.video.decode import crop_square
from vidflow.video.ffmpeg import SampledFrame, stream_frames

_NUM_CLASSES_SHOWN = 5
_NAME_WEIGHTS = 'name the right file with --weights FILE, or model_config={"weights": FILE} for a model from MLflow'
# Numbers in the tokens of a frame: a fifth of a ViT-S/16 at 224 pixels. For far smaller frames, a second thread made
# prediction 30 times slower on a busy machine.
_SMALL_FRAME = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePrediction:
    """A trial's prediction of one frame.

    Attributes:
        pixels: The frame at the video's own size, upright.
        row: `index` since the start of the stream, `pts_seconds`, and by task: `classes`, `boxes`, `points`,
            `camera_motion` or a summary of `depth`; JSON-ready, in pixels of the frame.
        depth: For `depth`, the depth of the frame's central square in metres; else None.
        is_held: Whether the frame was not looked at, and has the prediction of the last one that was. Before the first
            prediction, its row holds `pts_seconds` alone.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    row: dict[str, Any]
    depth: Float[np.ndarray, "h w"] | None
    is_held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """The central square of a frame, in pixels of the frame; the encoder sees nothing else."""

    left: float
    top: float
    side: float

    @classmethod
    def of(cls, frame: UInt8[np.ndarray, "H W 3"]) -> "Square":
        """Return the square of a frame, as `crop_square` cuts it."""
        height, width = frame.shape[:2]
        side = min(height, width)
        return cls(left=(width - side) / 2, top=(height - side) / 2, side=side)

    def to_fractions(self, corners: Float[np.ndarray, "rows xy"]) -> Float[np.ndarray, "rows xy"]:
        """Turn x and y in pixels of the frame, once or twice per row, into fractions of the square."""
        fractions: Float[np.ndarray, "rows xy"] = (corners - self._origin(corners)) / self.side
        return fractions

    def to_pixels(self, fractions: Float[np.ndarray, "rows xy"]) -> Float[np.ndarray, "rows xy"]:
        """Undo `to_fractions`."""
        corners: Float[np.ndarray, "rows xy"] = fractions * self.side + self._origin(fractions)
        return corners

    def _origin(self, rows: Float[np.ndarray, "rows xy"]) -> Float[np.ndarray, " xy"]:
        return np.tile([self.left, self.top], rows.shape[1] // 2)


class VideoPredictor:
    """A trained trial with everything that it needs to read a video.

    Attributes:
        model: The trial behind its encoder; holds the state of the stream.
        file: The `best.safetensors` that it was loaded from, if it was.
        weights: The encoder's weights: `hub`, `random:SEED` or a file.
        fps: Frames per second of the clips it was trained on.
        asks: `boxes` or `points` if the task needs queries that say what to follow, else None.
        is_small: Whether a frame is so little work that several CPU threads are slower than one.
    """

    def __init__(
        self, task: Task, features: dict[str, Any], *, weights: str | None = None, device: str = "cpu"
    ) -> None:
        """Rebuild the encoder and put the task behind it.

        Args:
            task: Trained task, on `device`.
            features: What the trial recorded of its features: `encoder`, `clip`, `class_names`, `fps`.
            weights: File of the encoder's weights, if it was moved; None is the recorded place.
            device: Where the encoder runs.

        Raises:
            VidflowError: The trial does not record its features, its weights are not finite, or the encoder's weights
                are missing or have changed.
        """
        if missing := [name for name in ("encoder", "clip") if name not in features]:
            raise VidflowError(
                f"the trial does not say of its features: {', '.join(missing)}; train it again on features that "
                "`vidflow extract` makes now"
            )
        if family := features["encoder"].get("family"):
            raise VidflowError(
                f"the trial was trained on features of {family}, which sees a whole clip at once; prediction frame by "
                "frame wants a trial on an image encoder"
            )
        encoder = rebuild_encoder(features["encoder"], weights=weights, device=device, reduction=_reducer_of(features))
        if not task.unmerges and encoder.reduction is not None:
            raise VidflowError(
                "the trial was trained on reduced tokens as they are stored (`unmerge: false`); prediction frame by "
                "frame wants one that was trained with `unmerge: true`"
            )
        clip = features["clip"]
        # Of three squares, training clips showed the central one.
        if clip.get("crop", "center") in ("left", "right") or clip.get("short_side") not in (None, clip["size"]):
            raise VidflowError(
                "the trial was trained on other squares than the whole central one (video.crop, video.short_side); "
                "prediction frame by frame takes the central square only"
            )

        def prepare(frame: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "S S 3"]:
            square = crop_square(frame, clip["size"], clip["resize_filter"])
            return fit_frames(torch.from_numpy(square.copy())[None], encoder.img_size)[0]

        self.model = StreamingModel(task, encoder, prepare=prepare, class_names=features.get("class_names", []))
        self.file: Path | None = None
        self.weights = encoder.weights
        self.asks = task.query.name if task.query else None
        # So that frames before the first prediction are drawn in the same size.
        self._no_depth = np.zeros((1, 1)) if isinstance(task, DepthTask) else None
        self._num_values = task.query.num_values if task.query else 0
        self.is_small = encoder.grid[0] * encoder.grid[1] * encoder.embed_dim < _SMALL_FRAME
        sampling = clip["sampling"]
        is_fixed = sampling["mode"] != "uniform"
        self.fps = float(sampling["fps"] if is_fixed else features.get("fps") or sampling["fps"])

    def predict(
        self,
        source: str,
        *,
        fps: float | None = None,
        start_seconds: float | None = None,
        max_frames: int | None = None,
        queries: Sequence[Sequence[float]] = (),
        every_frame: bool = False,
    ) -> Iterator[FramePrediction]:
        """Continue a stream and yield its predictions; `model.reset()` starts a new stream.

        Args:
            source: Video file, object of an object store, number of a camera, or URL of a stream.
            fps: Frames per second to predict; None is `self.fps`.
            start_seconds: Where to start on the video's clock; None is its first frame.
            max_frames: Maximum number of frames to predict; None is all.
            queries: Boxes (x0, y0, x1, y1) or points (x, y) in the first predicted frame, in its pixels.
            every_frame: Whether to yield the frames between the predicted ones, too, with the prediction held.

        Raises:
            VidflowError: The task needs queries and none are given, or takes none and some are given. Or a query is
                outside the central square, or a prediction is not finite.
            VideoError: The source cannot be read.
        """
        self._check_queries(queries)
        source = str(to_path(source)) if is_object_url(source) else source
        make_local(source)
        frames = stream_frames(source, fps=fps or self.fps, start_seconds=start_seconds, every_frame=every_frame)
        asked: dict[str, Any] | None = None
        last: FramePrediction | None = None
        num_predicted = 0
        for frame in frames:
            if asked is None:  # at the first frame, even if it is only shown, so that a wrong query is found at once
                square = Square.of(frame.pixels)
                asked = {self.asks: _fractions_of(queries, square)} if queries and self.asks else {}
            if not frame.is_sampled:
                yield self._hold(last, frame)
                continue
            last = self._predict_frame(frame, asked if not num_predicted else {})
            yield last
            num_predicted += 1
            if num_predicted == max_frames:
                return

    def _predict_frame(self, frame: SampledFrame, asked: dict[str, Any]) -> FramePrediction:
        square, index = Square.of(frame.pixels), self.model.num_frames
        outputs = self.model.step(frame.pixels, **asked)
        row = {"index": index, "pts_seconds": round(frame.pts_seconds, 6)}
        row |= self._describe(outputs, square, is_first=not index)
        _require_finite(row)
        return FramePrediction(pixels=frame.pixels, row=row, depth=outputs.get("depth"))

    def _hold(self, last: FramePrediction | None, frame: SampledFrame) -> FramePrediction:
        """Return a frame that is not looked at, with the last prediction."""
        row = {**(last.row if last is not None else {}), "pts_seconds": round(frame.pts_seconds, 6)}
        depth = self._no_depth if last is None else last.depth
        return FramePrediction(pixels=frame.pixels, row=row, depth=depth, is_held=True)

    def _check_queries(self, queries: Sequence[Sequence[float]]) -> None:
        if queries and self.asks is None:
            raise VidflowError(
                "this trial's task follows neither boxes nor points; leave out --box, --point, `queries`"
            )
        if self.asks is None:
            return
        width = self._num_values
        if (not queries and not self.model.num_queries) or any(len(query) != width for query in queries):
            example = "--box x0,y0,x1,y1" if self.asks == "boxes" else "--point x,y"
            raise VidflowError(
                f"this trial follows {self.asks}; say which with {example}, once for each, or `queries` of {width} "
                "numbers, in pixels of the first frame"
            )

    def _describe(self, outputs: dict[str, np.ndarray], square: Square, *, is_first: bool) -> dict[str, Any]:
        """Return predictions as JSON values."""
        if "logits" in outputs:
            return {"classes": _top_classes(outputs)}
        if "boxes" in outputs:
            return {"boxes": square.to_pixels(outputs["boxes"]).round(2).tolist()}
        if "points" in outputs:
            return {"points": _points(outputs, square)}
        if "depth" in outputs:
            depth = outputs["depth"]
            summary = {"min": depth.min(), "median": np.median(depth), "max": depth.max()}
            return {"depth": {f"{name}_metres": round(float(value), 4) for name, value in summary.items()}}
        # The first frame has no frame before it, so its motion is meaningless.
        return {"camera_motion": None if is_first else _motion(outputs["camera_motion"])}


def rebuild_encoder(
    description: dict[str, Any], *, weights: str | None = None, device: str = "cpu", reduction: Reducer | None = None
) -> FrozenEncoder:
    """Build the encoder that a description describes.

    On a CPU it runs in float32, even if the features were made in half precision, which is slower there and no closer.

    Args:
        description: What `FrozenEncoder.describe` returned.
        weights: File of the weights, if it was moved; None is the recorded place.
        device: Where to run.
        reduction: The reducer that the description names, if any.

    Raises:
        VidflowError: The weights are missing, or are not those that the description names.
    """
    wanted = weights or description["weights"]
    if Path(wanted).suffix in CHECKPOINT_SUFFIXES and not Path(wanted).is_file():
        raise VidflowError(
            f"{wanted}: no such file, wanted the weights of {description['name']} with digest "
            f"{description['weights_sha256'][:16]}; {_NAME_WEIGHTS}"
        )
    dtype: EncoderDtype = "float32" if device == "cpu" else description["dtype"]
    encoder = build_encoder(
        name=description["name"],
        weights=wanted,
        img_size=description["img_size"],
        depths=description["depths"],
        normalize_depths=description["normalize_depths"],
        device=device,
        dtype=dtype,
        mean=description["mean"],
        std=description["std"],
        reduction=reduction,
    )
    if encoder.weights_sha256 != description["weights_sha256"]:
        raise VidflowError(
            f"{wanted}: its weights of {description['name']} have digest {encoder.weights_sha256[:16]}, but the trial "
            f"was trained on {description['weights_sha256'][:16]}; {_NAME_WEIGHTS} (random weights also depend on the "
            f"versions of timm and torch: they were {description['timm']} and {description['torch']})"
        )
    return encoder


def _reducer_of(features: dict[str, Any]) -> Reducer | None:
    """Build the reducer that made the features; it must work on single frames.

    Raises:
        VidflowError: It needs whole clips, which a stream does not have, or an older version made the features.
    """
    settings = features.get("settings", {})
    spec = settings.get("reducer") or settings.get("features", {}).get("reducer") or {"name": "none"}
    place = spec.get("place", spec.get("stage"))  # older features call it `stage`
    reducer = build_reducer(spec["name"], place=place, **spec.get("settings", {}))
    version, current = settings.get("version"), STAGE_VERSIONS["extract"]
    if reducer is not None and version not in (None, current):
        raise VidflowError(
            f"the trial was trained on tokens that {spec['name']!r} reduced in version {version} of extraction; this "
            f"is version {current}, which may reduce otherwise; run the experiment again to train it on new features"
        )
    if reducer is None or reducer.place == "block" or isinstance(reducer, InputLowerResolution):
        return reducer
    raise VidflowError(
        f"the trial was trained on tokens reduced by {spec['name']!r}, which looks at whole clips; prediction frame by "
        "frame wants a trial on features without a reducer, or with one that acts inside the encoder"
    )


def _fractions_of(queries: Sequence[Sequence[float]], square: Square) -> Float[np.ndarray, "queries xy"]:
    """Turn queries into fractions of the square; boxes are clipped to the square."""
    fractions = square.to_fractions(np.asarray(queries, dtype=np.float64))
    cut = fractions.clip(0, 1)
    is_box = cut.shape[1] == 4
    for query, row, inside in zip(queries, fractions, cut, strict=True):
        if (inside[2:] <= inside[:2]).any() if is_box else (row != inside).any():
            raise VidflowError(
                f"got {'box' if is_box else 'point'} {','.join(f'{value:g}' for value in query)}; wanted one in the "
                f"central square of the frame, which is all the trial sees: x from {square.left:g} to "
                f"{square.left + square.side:g}, y from {square.top:g} to {square.top + square.side:g}"
            )
    return cut


def _require_finite(row: dict[str, Any]) -> None:
    """Check that a row has no NaN or infinity, which JSON cannot express."""
    try:
        json.dumps(row, allow_nan=False)
    except ValueError as error:
        *_, name = row
        raise VidflowError(
            f"frame {row['index']} at {row['pts_seconds']:g} s: its `{name}` holds NaN or infinite numbers: the "
            "encoder or the trial overflowed there; end before it with --max-frames, or begin after it with --start"
        ) from error


def _top_classes(outputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    best = np.argsort(-outputs["logits"], kind="stable")[:_NUM_CLASSES_SHOWN]
    names, probabilities = outputs["names"], outputs["probabilities"]
    return [{"name": str(names[i]), "probability": round(float(probabilities[i]), 6)} for i in best]


def _points(outputs: dict[str, np.ndarray], square: Square) -> list[dict[str, Any]]:
    """Return points with their visibility, by the rule of TAPIR (arXiv 2306.08637), which the metric uses too."""
    visibility, uncertainty = (1 / (1 + np.exp(-outputs[f"{name}_logits"])) for name in ("visibility", "uncertainty"))
    certain = visibility * (1 - uncertainty)
    return [
        {"x": round(float(x), 2), "y": round(float(y), 2), "visible": bool(p > 0.5), "confidence": round(float(p), 4)}
        for (x, y), p in zip(square.to_pixels(outputs["points"]), certain, strict=True)
    ]


def _motion(motion: Float[np.ndarray, " 9"]) -> dict[str, Any]:
    rotation = rotation_matrix(torch.from_numpy(motion[3:])).numpy()
    return {"translation_metres": motion[:3].round(6).tolist(), "rotation": rotation.round(6).tolist()}


__all__ = ["FramePrediction", "Square", "VideoPredictor", "rebuild_encoder"]
