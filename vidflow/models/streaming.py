"""A frozen encoder and a trained task that process a video frame by frame.

Axes: H and W pixels of a frame, S pixels a side of the encoder's input, O boxes, Q points, L tokens of the core,
K tapped depths, N patches, D width.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.encoder import FrozenEncoder
from vidflow.models.encoder.encoded import EncodedFrames
from vidflow.models.encoder.streamed import StreamState
from vidflow.models.tasks.task import Task, TaskState
from vidflow.models.tensor_checks import nonfinite_names, state_sha256

Frame = UInt8[np.ndarray, "H W 3"] | UInt8[Tensor, "H W 3"]
Prepare = Callable[[UInt8[np.ndarray, "H W 3"]], UInt8[Tensor, "S S 3"]]


class StreamingModel:
    """Predicts each frame as it arrives; its state has a fixed size.

    Attributes:
        num_frames: Frames seen since the start.
    """

    def __init__(
        self,
        task: Task,
        encoder: FrozenEncoder,
        *,
        prepare: Prepare | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        """Start before the first frame.

        Args:
            task: Trained task; it is set to eval mode.
            encoder: The encoder whose features the task was trained on, on the same device.
            prepare: Turns a frame of any size into the encoder's square, as for the training clips; None if frames
                already have that size.
            class_names: Names of a classifier's classes, in their order; a class without a name has its number.

        Raises:
            VidflowError: The task's weights are not finite, its core sees groups of frames, or the encoder sees later
                frames.
        """
        if not task.core.can_stream:
            raise VidflowError(
                "the trial's core vtm sees groups of frames, so it cannot run frame by frame; train one with "
                "vtm_groups [1, 1, 1], or measure this one on clips with `vidflow evaluate`"
            )
        if bad := nonfinite_names(task.state_dict()):
            raise VidflowError(
                f"the trial's weights hold NaN or infinite numbers in {', '.join(bad)}; train it again, or take another"
            )
        self._task, self._encoder, self._prepare = task.eval(), encoder, prepare or _as_it_is
        self._class_names = tuple(class_names)
        self._num_tokens = encoder.num_prefix_tokens + encoder.grid[0] * encoder.grid[1]
        self._asks = task.query.name if task.query else None
        self.reset()

    def reset(self) -> None:
        """Forget the video: all frames, boxes and points."""
        self.num_frames = 0
        self._state = self._fresh()
        self._encoder_state = self._encoder.init_stream(1)
        self._queries = self._empty_queries()
        self._grid = self._empty_grid()

    @cached_property
    def trial_sha256(self) -> str:
        """Digest of the task's and the encoder's weights, by which a state identifies its trial."""
        weights = f"{state_sha256(self._task.state_dict())} {self._encoder.weights_sha256}"
        return hashlib.sha256(weights.encode()).hexdigest()

    @property
    def num_queries(self) -> int:
        """Boxes or points that are followed."""
        return int(self._queries[self._asks].shape[1]) if self._asks else 0

    @torch.inference_mode()
    def step(
        self,
        frame: Frame,
        *,
        boxes: Float[np.ndarray, "O 4"] | None = None,
        points: Float[np.ndarray, "Q 2"] | None = None,
    ) -> dict[str, np.ndarray]:
        """Predict the next frame; the encoder runs once.

        Args:
            frame: RGB frame of any size that `prepare` accepts.
            boxes: More boxes to follow from this frame on, corners in [0, 1] of the square; for `box_tracking`.
            points: More points to follow from this frame on, x and y in [0, 1] of the square; for `point_tracking`.

        Returns:
            The task's predictions for this frame, without batch and time axes: `logits` (C,) with the `probabilities`
            and `names` of the classes (C,), the most likely one at `probabilities.argmax()`; `boxes` (O, 4); `points`
            (Q, 2) with `visibility_logits` and `uncertainty_logits` (Q,), `depth` (H, W) in metres, or
            `camera_motion` (9,). Followed boxes and points keep the order in which they were given.

        Raises:
            ValueError: The task takes no such queries, or the frame has another size than required; the state stays
                as it was.
        """
        asked = {"boxes": boxes, "points": points}
        queries = [self._checked(name, given) for name, given in asked.items() if given is not None]
        pixels = frame.cpu().numpy() if isinstance(frame, Tensor) else frame
        encoded, encoder_state = self._encoder.step(self._prepare(pixels)[None], self._encoder_state)
        for added in queries:
            self._follow(added)
        # Feature files are in half precision, so the task was trained on half precision.
        tokens = self._on_grid(encoded)[:, -self._task.num_depths :].float()
        prefix = encoded.prefix.half().float() if encoded.prefix.shape[1] else None
        predictions, self._state = self._task.step(tokens, prefix, self._queries, self._state)
        self._encoder_state = encoder_state
        self.num_frames += 1
        answer = {name: part[0].float().cpu().numpy() for name, part in predictions.items()}
        if "logits" in answer:
            answer["probabilities"] = predictions["logits"][0].float().softmax(-1).cpu().numpy()
            answer["names"] = self._names(len(answer["logits"]))
        return answer

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the whole state, on the host; a model with the same weights can continue from them.

        Raises:
            VidflowError: The state is not finite, so nothing can continue from it.
        """
        named = self._named(self.num_frames, self._state, self._queries, self._grid, self._encoder_state)
        _require_finite(named)
        return {name: part.detach().cpu().clone().contiguous() for name, part in named.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state that `state_dict` returned.

        Raises:
            VidflowError: The state is of another trial, or not finite; the model keeps its current state.
        """
        if (saved_by := _digest_in(state)) != self.trial_sha256:
            raise VidflowError(
                f"the state was saved by the trial with digest {saved_by}, this trial has {self.trial_sha256}: load it "
                "with the trial that saved it"
            )
        queries = {name: state[f"queries.{name}"] for name in self._queries if f"queries.{name}" in state}
        count = next((part.shape[1] for part in queries.values() if part.ndim > 1), 0)
        fresh = self._fresh(count)
        seen = self._encoder.init_stream(1)
        wanted = self._named(0, fresh, self._empty_queries(count), self._empty_grid(), seen)
        if _signature(state) != _signature(wanted):
            raise VidflowError(
                f"the state holds {_listed(state)}; this trial's is {_listed(wanted)}: load it with the trial that "
                "saved it"
            )
        _require_finite(state)
        moved = {name: part.to(self._encoder.device) for name, part in state.items()}
        self._state = TaskState(
            tuple(moved[f"core.{index}"] for index in range(len(fresh.core))),
            tuple(moved[f"readout.{index}"] for index in range(len(fresh.readout))),
        )
        self._queries = {name: moved[f"queries.{name}"] for name in self._queries}
        self._grid = moved["grid"]
        self._encoder_state = tuple(moved[f"encoder.{index}"] for index in range(len(seen)))
        self.num_frames = int(state["num_frames"])

    def _names(self, num_classes: int) -> np.ndarray:
        named = self._class_names[:num_classes]
        return np.array([*named, *map(str, range(len(named), num_classes))])

    def _fresh(self, num_queries: int = 0) -> TaskState:
        """Return the state before the first frame, in the precision of the weights."""
        dtype = next(self._task.parameters()).dtype
        return self._task.init_stream(
            1, self._num_tokens, num_queries=num_queries, device=self._encoder.device, dtype=dtype
        )

    def _checked(self, name: str, given: Float[np.ndarray, "queries numbers"]) -> Float[Tensor, "1 queries numbers"]:
        """Return the queries as a tensor, or raise if the task does not take them."""
        if name != self._asks:
            raise ValueError(f"{type(self._task).__name__} got {name}; it takes {self._asks or 'no queries'}")
        added = torch.as_tensor(given, dtype=torch.float32, device=self._encoder.device)[None]
        old = self._queries[name]
        if added.ndim != old.ndim or added.shape[-1] != old.shape[-1]:
            raise ValueError(f"{name} has shape {tuple(added.shape[1:])}, wanted (any number, {old.shape[-1]})")
        if not added.isfinite().all():
            raise ValueError(f"{name} is {added[0].tolist()}, wanted finite numbers")
        return added

    def _follow(self, added: Float[Tensor, "1 queries numbers"]) -> None:
        """Add queries that start at the next frame, with a fresh state."""
        assert self._asks is not None
        frames = torch.full(added.shape[:2], self.num_frames, device=added.device)
        self._queries = {
            self._asks: torch.cat([self._queries[self._asks], added], 1),
            "query_frames": torch.cat([self._queries["query_frames"], frames], 1),
        }
        # The first part counts frames; the others have one row per query.
        age, *rest = self._state.readout
        _, *fresh = self._task.init_readout(1, added.shape[1], added.device)
        parts = (torch.cat([part, new], 1) for part, new in zip(rest, fresh, strict=True))
        self._state = TaskState(self._state.core, (age, *parts))

    def _on_grid(self, encoded: EncodedFrames) -> Float16[Tensor, "1 K N D"]:
        """Unmerge the tokens of a reduced frame to the full grid of patches, as training does.

        A dropped patch gets the token of the same place in the previous frame, zeros at the start.
        """
        tokens = encoded.tokens.half()
        if encoded.assignment is None:
            return tokens
        chosen = encoded.assignment[..., None]
        shown = tokens.gather(2, chosen.clamp(min=0).expand(-1, -1, -1, tokens.shape[-1]))
        self._grid = torch.where(chosen >= 0, shown, self._grid)
        return self._grid

    def _empty_grid(self) -> Float16[Tensor, "1 K N D"]:
        """Return the grid before the first frame; an encoder without reduction needs none."""
        encoder = self._encoder
        num_patches = 0 if encoder.reduction is None else encoder.grid[0] * encoder.grid[1]
        shape = (1, len(encoder.depths), num_patches, encoder.embed_dim)
        return torch.zeros(shape, device=encoder.device, dtype=torch.float16)

    def _empty_queries(self, count: int = 0) -> dict[str, Tensor]:
        query, device = self._task.query, self._encoder.device
        if query is None:
            return {}
        return {
            query.name: torch.zeros(1, count, query.num_values, device=device),
            "query_frames": torch.zeros(1, count, dtype=torch.int64, device=device),
        }

    def _named(
        self, num_frames: int, state: TaskState, queries: dict[str, Tensor], grid: Tensor, encoder: StreamState
    ) -> dict[str, Tensor]:
        return {
            "trial": torch.tensor(list(bytes.fromhex(self.trial_sha256)), dtype=torch.uint8),
            "num_frames": torch.tensor(num_frames),
            "grid": grid,
            **{f"encoder.{index}": part for index, part in enumerate(encoder)},
            **{f"core.{index}": part for index, part in enumerate(state.core)},
            **{f"readout.{index}": part for index, part in enumerate(state.readout)},
            **{f"queries.{name}": part for name, part in queries.items()},
        }


def _as_it_is(frame: UInt8[np.ndarray, "S S 3"]) -> UInt8[Tensor, "S S 3"]:
    """Convert a frame; torch has no negative strides, which views of flipped frames have."""
    return torch.from_numpy(np.ascontiguousarray(frame))


def _digest_in(state: dict[str, Tensor]) -> str:
    trial = state.get("trial", torch.empty(0))
    return bytes(trial.tolist()).hex() if trial.dtype == torch.uint8 and trial.ndim == 1 else "none"


def _require_finite(state: dict[str, Tensor]) -> None:
    if bad := nonfinite_names(state):
        raise VidflowError(
            f"the state holds NaN or infinite numbers in {', '.join(bad)}; start from the first frame, or from an "
            "earlier state"
        )


def _signature(state: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (part.shape, part.dtype) for name, part in state.items()}


def _listed(state: dict[str, Tensor]) -> str:
    parts = sorted(state.items())
    return ", ".join(f"{name} {tuple(part.shape)} {str(part.dtype).removeprefix('torch.')}" for name, part in parts)


__all__ = ["Frame", "Prepare", "StreamingModel"]
