"""Which feature sets are known to have other numbers of tokens in other frames, or at other depths."""

from collections.abc import Sequence

from vidflow.config.schema import FeatureSet


def uneven_counts(features: FeatureSet) -> str | None:
    """Say where numbers of tokens differ by the settings of a reducer alone: `frames` or `depths`; None if nowhere."""
    reducer = features.reducer
    given = reducer.settings
    match reducer.name:
        case "algm" | "sttm":
            differs = True
        case "evs" | "dycoke":
            differs = given.get("prune") != 0
        case "fewer_frames":
            differs = given.get("stride") != 1
        case "density_peaks":
            differs = given.get("frames_per_segment", 1) != 1
        case "pool":
            window = given.get("window")
            differs = isinstance(window, list) and window[:1] != [1]
        case "tome" | "drop" | "random_merge" | "random_drop" | "hybrid" | "vidtldr" if reducer.place != "post":
            return "depths" if _reduces_between(features.depths, features) else None
        case _:
            differs = given.get("scope") == "clip"
    return "frames" if differs else None


def _reduces_between(depths: Sequence[int], features: FeatureSet) -> bool:
    """Say whether tokens surely get fewer between the first and the last of some blocks."""
    given = features.reducer.settings
    if len(depths) < 2:
        return False
    num_merged = given.get("num_merged", 0)
    if isinstance(num_merged, list):
        # Where all count from the last block, the list may have ended before them.
        from_start = [depth for depth in depths if depth >= 0]
        last = max(from_start) + 1 if len(from_start) == len(depths) else None
        return bool(from_start) and any(num_merged[min(from_start) + 1 : last])
    return given.get("schedule", "constant") == "constant" and (
        num_merged != 0 or given.get("keep", 1) != 1 or "tokens" in given
    )


__all__ = ["uneven_counts"]
