"""The exceptions that are caught or printed specially. Any other exception is a bug."""

from typing import Literal

RowReason = Literal["BadRow", "PathEscapes"]
_FileReason = Literal["Missing", "NotAFile", "Unreadable", "Empty", "OtherBytes", "Changed"]
_VideoReason = Literal[
    "NotAVideo", "NoVideoStream", "UnknownCodec", "NoFrames", "NoTimestamps", "UnorderedTimes", "Orientation"
]
_DamageReason = Literal["Truncated", "Corrupt", "DecodeError", "NonFinite"]
_ClipReason = Literal["Annotations", "SpanOutside", "TooManyWindows", "Leak", "Duplicate", "LabelConflict"]
_ProcessReason = Literal["Timeout", "OutOfMemory", "DecoderCrashed", "DecoderFailed", "WorkerDied"]
RejectReason = Literal[RowReason, _FileReason, _VideoReason, _DamageReason, _ClipReason, _ProcessReason]
"""Why an input is left out."""


class VidflowError(Exception):
    """A failure with a message for the user: value got, value wanted, key or file, what to do."""

    exit_code = 1


class ConfigError(VidflowError):
    """The configuration has problems; the message lists all of them."""

    exit_code = 2


class TooManyRejectsError(VidflowError):
    """More inputs were rejected than `max_reject_fraction` allows."""

    exit_code = 3


class FailedTrialsError(VidflowError):
    """Some trials of a sweep failed; the results of the others are committed and can be reported."""


class DamagedError(VidflowError):
    """A file that vidflow wrote is missing or its bytes have changed; it can be made again."""


class VideoError(VidflowError):
    """A video or clip cannot be used; it becomes a `Reject` row and the run continues.

    Attributes:
        reason: Class of the problem, such as `Truncated` or `NoVideoStream`.
        attempts: How often the input was tried.
    """

    def __init__(self, reason: RejectReason, message: str, *, attempts: int = 1) -> None:
        """Store `reason` too, so that rejects can be grouped by it."""
        super().__init__(message)
        self.reason = reason
        self.attempts = attempts
