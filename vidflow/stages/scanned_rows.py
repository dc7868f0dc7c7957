"""The rows of a manifest beside the scans of their files, in columns.

Axes: R rows of a manifest, C clips, T frames of a clip.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int64

from vidflow.errors import VideoError
from vidflow.records import Reject, VideoItem
from vidflow.stages.kept_tables import table_digest
from vidflow.stages.scans import ScanColumns, Scans
from vidflow.video.decode import Crop
from vidflow.video.sampling import clip_times, count_clips, row_spans
from vidflow.video.video_rows import VideoRows

_ALL = slice(None)
SQUARES: tuple[Crop, ...] = ("center", "left", "right")
"""The squares of a clip where it shows three; where it shows one, that is the first."""


def list_class_names(items: Sequence[VideoItem]) -> list[str]:
    """Return the sorted labels; rejected rows count too, so that a broken video changes no class number."""
    return sorted(name for name in pc.unique(VideoRows.of(items).table["label"]).to_pylist() if name)


class ScannedRows:
    """The rows of a manifest with the scans of their files, and how clips are taken from them.

    Attributes:
        rows: The rows.
        label_indices: Label of any row -> its number among the sorted labels.
        starts: Start of each row's span within its video.
        ends: Its end.
        is_inside: Whether the span is a part of the video.
        num_clips: How many clips it gives; a float, because false times in a file can make it huge.
    """

    def __init__(
        self, rows: VideoRows, scans: Scans, sampling: dict[str, Any], *, plain_split: str | None = None
    ) -> None:
        """Find the scan of every file; there must be one.

        Args:
            rows: The rows.
            scans: The scans of their files.
            sampling: Which times of a row make a clip.
            plain_split: Split whose clips show the central square, while clips of others are made of three squares
                each; None: all clips show the square of the settings.
        """
        self.rows, self._scans, self._sampling = rows, scans, sampling
        self.label_indices = {name: index for index, name in enumerate(list_class_names(rows))}
        self._videos = _find_all(scans.videos, rows.table["path"])
        self._truths = _find_all(scans.truths, rows.table["annotations"])
        given = rows.table.select(["start_seconds", "end_seconds"])
        self.starts, self.ends, self.is_inside = row_spans(
            *(pc.fill_null(column, np.nan).to_numpy() for column in given.columns),
            first=self.of_video("start_seconds").to_numpy(),
            last=self.of_video("end_seconds").to_numpy(),
        )
        self._num_spans = count_clips(self.starts, self.ends, **sampling)
        self._has_squares = plain_split is not None
        are_plain = pc.fill_null(pc.equal(rows.table["split"], plain_split), True).to_numpy()
        self._num_squares = np.where(are_plain, 1, len(SQUARES))
        self.num_clips = self._num_spans * self._num_squares

    def of_video(self, column: str, rows: Int64[np.ndarray, " C"] | slice = _ALL) -> pa.ChunkedArray:
        """Return a column of the scans of the videos of some rows."""
        return self._scans.videos.table[column].take(self._videos[rows])

    def of_truth(self, column: str) -> pa.ChunkedArray:
        """Return a column of the scans of the rows' ground truth; null where a row has none."""
        return self._scans.truths.table[column].take(pa.array(self._truths, mask=self._truths < 0))

    @property
    def contents(self) -> Int64[np.ndarray, " R"]:
        """A number for the content of each row's video, which rows of the same content share."""
        videos = self._scans.videos
        # The first scan of the content. Found among the scans, because the digests of a million rows are large.
        first: Int64[np.ndarray, " R"] = videos.find(videos.table["sha256"], "sha256")[self._videos]
        return first

    @property
    def are_usable(self) -> Bool[np.ndarray, " R"]:
        """Whether each row's files can be used, are those of the manifest, and have the span."""
        wanted, found = self.rows.table["sha256"], self.of_video("sha256")
        is_usable = pc.and_(
            pc.equal(self.of_video("reason"), ""),
            pc.and_(
                pc.fill_null(pc.equal(wanted, found), True), pc.fill_null(pc.equal(self.of_truth("reason"), ""), True)
            ),
        )
        has_frames = self._num_spans <= np.maximum(1, self.of_video("num_frames").to_numpy())
        # Only windows: `spread` shows a short video several times on purpose.
        fits = has_frames if self._sampling["mode"] == "windows" else True
        usable: Bool[np.ndarray, " R"] = is_usable.to_numpy() & self.is_inside & fits
        return usable

    def files(self, rows: Int64[np.ndarray, " C"]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return path, digest and stamp of the videos of some rows and of their ground truth, null if there is none."""
        columns = ["path", "sha256", "num_bytes", "modified_ns"]
        videos, truths = (scans.table.select(columns) for scans in self._scans)
        at = self._truths[rows]
        return videos.take(self._videos[rows]).to_pylist(), truths.take(pa.array(at, mask=at < 0)).to_pylist()

    def digest(self, settings: str) -> str:
        """Return the hash of all that the choice of clips depends on; `settings` says how they are chosen."""
        of_scans = ["sha256", "start_seconds", "end_seconds", "num_frames", "reason", "message", "attempts"]
        # All scans and where those of the rows are in them, which is read as it lies; to pick them takes far longer.
        at = pa.table({"videos": self._videos, "truths": self._truths})
        return table_digest((self.rows.table, *(scans.table.select(of_scans) for scans in self._scans), at), settings)

    def times(self, rows: Int64[np.ndarray, " C"], numbers: Int64[np.ndarray, " C"]) -> Float64[np.ndarray, "C T"]:
        """Return the times of clips.

        Args:
            rows: The row of each.
            numbers: Its number among the clips of that row.
        """
        at = self._videos[rows]
        table = self._scans.videos.table.select(["start_seconds", "end_seconds", "num_frames"]).take(at)
        first, last, num_frames = (column.to_numpy() for column in table.columns)
        return clip_times(
            self.starts[rows][:, None],
            self.ends[rows][:, None],
            (numbers // self._num_squares[rows])[:, None],
            **self._sampling,
            frame_seconds=((last - first) / np.maximum(1, num_frames))[:, None],
        )

    def squares(self, rows: Int64[np.ndarray, " C"], numbers: Int64[np.ndarray, " C"]) -> list[Crop | None]:
        """Return the square of clips as `times` returns their times; None is the square of the settings."""
        if not self._has_squares:
            return [None] * len(rows)
        return [SQUARES[number] for number in (numbers % self._num_squares[rows]).tolist()]

    def refusal(self, row: int) -> Reject:
        """Return why a row gives no clip; it is one of those that are not usable."""
        item, scan = self.rows[row], self._scans.videos[int(self._videos[row])]
        truth = self._scans.truths[int(self._truths[row])] if self._truths[row] >= 0 else None
        if scan.reason:
            return reject_row(item, VideoError(scan.reason, scan.message, attempts=scan.attempts))
        if item.sha256 not in (None, scan.sha256):
            return reject_row(
                item,
                VideoError(
                    "OtherBytes",
                    f"{item.path}: got sha256 {scan.sha256}, wanted {item.sha256} as the manifest says; fetch it again",
                ),
            )
        if truth is not None and truth.reason:
            return reject_row(
                item,
                VideoError(
                    "Annotations",
                    f"{item.path}: its annotations cannot be read: {truth.message}",
                    attempts=truth.attempts,
                ),
            )
        first, last = scan.start_seconds, scan.end_seconds
        if not self.is_inside[row]:
            start = first if item.start_seconds is None else item.start_seconds
            end = last if item.end_seconds is None else item.end_seconds
            return reject_row(
                item,
                VideoError(
                    "SpanOutside",
                    f"{item.path}: got the span {start:.3f} to {end:.3f} s, wanted a part of {first:.3f} to {last:.3f} "
                    "s; correct start_seconds and end_seconds in the manifest, or fetch the whole video",
                ),
            )
        return reject_row(
            item,
            VideoError(
                "TooManyWindows",
                f"{item.path}: got {self._num_spans[row]:.0f} windows in {self.ends[row] - self.starts[row]:.3f} s "
                f"of a video of {scan.num_frames} frames, wanted no more windows than frames; raise "
                "video.sampling.stride_seconds, or export the video again if it is not that long",
            ),
        )


def reject_row(item: VideoItem, error: VideoError) -> Reject:
    """Return the reject of a row."""
    return Reject(
        key="", path=str(item.path), stage="scan", reason=error.reason, message=str(error), attempts=error.attempts
    )


def _find_all(scans: ScanColumns, paths: pa.ChunkedArray) -> Int64[np.ndarray, " R"]:
    """Return the scan of each path, -1 for null.

    Raises:
        KeyError: If a path has none.
    """
    at = scans.find(paths)
    missing = pc.and_(pa.chunked_array([pa.array(at < 0)]), pc.is_valid(paths))
    if pc.any(missing).as_py():
        raise KeyError(paths.filter(missing)[0].as_py())
    return at


__all__ = ["SQUARES", "ScannedRows", "list_class_names", "reject_row"]
