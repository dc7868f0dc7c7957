"""Token budgets: how many tokens a reducer leaves, as a fraction or as a number per frame."""

from abc import abstractmethod
from dataclasses import dataclass

from vidflow.errors import VidflowError
from vidflow.models.reduction.macs import VitShape
from vidflow.models.reduction.reducer import PostReducer


def check_budget(name: str, *, keep: float | None, tokens: int | None) -> None:
    """Check that exactly one of `keep` and `tokens` is given, and that it is in range.

    Raises:
        VidflowError: None is given, both are given, or the value is out of range.
    """
    if (keep is None) == (tokens is None):
        raise VidflowError(f"reducer {name!r} wants one of keep and tokens, got {keep} and {tokens}")
    if keep is not None and not 0 < keep <= 1:
        raise VidflowError(f"reducer {name!r} has keep {keep}; wanted a fraction above 0 and up to 1")
    if tokens is not None and tokens < 1:
        raise VidflowError(f"reducer {name!r} has tokens {tokens}; wanted 1 or more in each frame")


def tokens_left(name: str, *, keep: float | None, tokens: int | None, num_patches: int, num_frames: int = 1) -> int:
    """Return the number of tokens that a budget leaves of `num_frames` frames together.

    Args:
        name: Name of the reducer, for the message.
        keep: Fraction of tokens to keep, above 0 and up to 1.
        tokens: Instead: tokens to keep per frame.
        num_patches: Patches of a frame.
        num_frames: Frames that are reduced together.

    Raises:
        VidflowError: The budget is larger than the number of patches.
    """
    if tokens is None:
        assert keep is not None
        return max(1, round(keep * num_frames * num_patches))
    if tokens > num_patches:
        raise VidflowError(f"reducer {name!r} has tokens {tokens}; wanted at most the {num_patches} patches of a frame")
    return num_frames * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget(PostReducer):
    """Leaves a fraction of cached tokens, or a number per frame.

    Attributes:
        keep: Fraction of tokens to keep, above 0 and up to 1.
        tokens: Instead: tokens to keep per frame.
    """

    keep: float | None = None
    tokens: int | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the reducer in the configuration."""

    def __post_init__(self) -> None:
        check_budget(self.name, keep=self.keep, tokens=self.tokens)

    def check(self, shape: VitShape, *, num_frames: int) -> None:  # noqa: ARG002
        """Check that frames have enough tokens for the budget.

        Raises:
            VidflowError: They have fewer.
        """
        self.num_left(shape.num_patches)

    def num_left(self, num_patches: int, num_frames: int = 1) -> int:
        """Return how many tokens are left of `num_frames` frames that are reduced together."""
        return tokens_left(
            self.name, keep=self.keep, tokens=self.tokens, num_patches=num_patches, num_frames=num_frames
        )


__all__ = ["Budget", "check_budget", "tokens_left"]
