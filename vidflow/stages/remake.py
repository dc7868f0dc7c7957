"""Make single clips again from their sources and compare them with what is stored: frames, then tokens.

Frames are compared byte for byte. Tokens need not have the same bits: a clip is encoded alone here and was encoded in a
batch, perhaps on another device, and matrix products of other shapes add up in another order.

Axes: T frames, K tapped depths, N tokens, D embedding width.
"""

import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vidflow.errors import VideoError, VidflowError
from vidflow.files import file_state, make_local
from vidflow.models.encoder import FrozenEncoder
from vidflow.models.encoder.fitting import fit_frames
from vidflow.models.reduction.build import PostReducer, build_reducer
from vidflow.records import ClipTokens, StageManifest
from vidflow.stages.finish import peek_manifest
from vidflow.stages.predict import rebuild_encoder
from vidflow.stages.reduce import reduce_clip
from vidflow.stages.root_files import INDEX
from vidflow.stages.scan import ScannedVideo
from vidflow.store.features import CLIPS_TABLE, ClipRow, FeatureReader
from vidflow.store.layout import list_files, list_folders, sha256_of
from vidflow.store.rows import read_rows
from vidflow.store.shards import ShardSample, read_shard
from vidflow.video.encode import EncodedClip, decompress, encode_clip
from vidflow.video.sandbox import Sandbox

Verdict = Literal["equal", "close", "differs", "unknown"]
# Largest relative error of a clip's tokens, |again - stored| / |stored|, that rounding explains. Measured on a CPU with
# ViT-S and ViT-B, a clip alone against its batch: none in float32, 1.0e-2 in bfloat16; bfloat16 against float32 1.1e-2.
# fp16, in which tokens are stored, alone gives 2e-4. Another clip gives 1.1 to 1.5, other weights 1.4. The limits are
# above what rounding gives by a factor of about 3, as other devices add up in another order.
TOLERANCE = {"float32": 2e-3, "bfloat16": 3e-2, "float16": 5e-3}
# More than the defaults of `resources`, as these clips could be decoded before.
_SECONDS_PER_CLIP, _DECODER_MIB = 600.0, 4096
_ENCODING = ("decoder", "size", "resize_filter", "short_side", "crop", "image_format", "jpeg_quality")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remade:
    """One clip made again.

    Attributes:
        key: Key of the clip.
        what: `frames`, or `tokens` and the name of the feature set.
        file: The file that holds the clip.
        verdict: `equal` bit for bit; `close`, which rounding explains; `differs`; or `unknown` if it could not be made.
        detail: How much it differs, or why it could not be made.
    """

    key: str
    what: str
    file: Path
    verdict: Verdict
    detail: str = ""


def draw_clips(root: Path, number: int, *, seed: int, sound: Sequence[Path]) -> dict[Path, list[ClipRow]]:
    """Draw clips from the finished shards below a root; return the chosen ones of each folder of shards.

    Args:
        root: The root.
        number: How many; all if there are fewer.
        seed: Seed of the choice.
        sound: Folders in which nothing is broken; others are left out.
    """
    folders = [each for each in list_folders(root / "shards") if each in sound and peek_manifest(each) is not None]
    clips = [(each, row) for each in folders for row in read_rows(each / CLIPS_TABLE, ClipRow)]
    chosen: dict[Path, list[ClipRow]] = {}
    for folder, row in random.Random(seed).sample(clips, min(number, len(clips))):
        chosen.setdefault(folder, []).append(row)
    return chosen


def remake(root: Path, chosen: Mapping[Path, Sequence[ClipRow]], *, sound: Sequence[Path]) -> Iterator[Remade]:
    """Make the chosen clips again and yield how they compare.

    Args:
        root: The root.
        chosen: What `draw_clips` has drawn.
        sound: Folders in which nothing is broken; features in others are left out.
    """
    videos = _list_videos(root)
    for folder, rows in chosen.items():
        manifest = peek_manifest(folder)
        assert manifest is not None, "clips are drawn from finished shards"
        samples = list(_read_samples(folder, rows))
        with Sandbox(timeout_seconds=_SECONDS_PER_CLIP, memory_mib=_DECODER_MIB) as sandbox:
            for file, sample in samples:
                verdict, detail = _remake_frames(root, sandbox, manifest, sample, videos)
                yield Remade(key=sample.key, what="frames", file=file, verdict=verdict, detail=detail)
        for features in list_folders(root / "features"):
            if features in sound:
                yield from _remake_tokens(root, features, folder.name, [sample for _, sample in samples], sound)


def _list_videos(root: Path) -> dict[str, ScannedVideo]:
    """Return the newest scan of each content, by its digest."""
    parts = list_files(root / INDEX, "*.parquet")
    return {row.sha256: row for part in parts for row in read_rows(part, ScannedVideo) if row.is_video}


def _read_samples(folder: Path, rows: Sequence[ClipRow]) -> Iterator[tuple[Path, ShardSample]]:
    for file in sorted({row.file for row in rows}):
        keys = {row.key for row in rows if row.file == file}
        yield from ((folder / file, sample) for sample in read_shard(folder / file) if sample.key in keys)


def _remake_frames(
    root: Path, sandbox: Sandbox, manifest: StageManifest, sample: ShardSample, videos: Mapping[str, ScannedVideo]
) -> tuple[Verdict, str]:
    video = videos.get(sample.metadata["sha256"])
    if video is None:
        return "unknown", f"no scan of its video, {sample.metadata['source']}"
    path = _find_video(root, Path(video.path))
    if path is None:
        return "unknown", f"its video is gone: {video.path}"
    if (str(path), file_state(path).stamp) != (video.path, video.state.stamp) and sha256_of(path) != video.sha256:
        return "unknown", f"its video has changed: {path}"
    truth = path.with_suffix(".npz")
    for each in (path, truth):
        make_local(each)  # the sandbox copies no objects
    settings = {name: manifest.settings[name] for name in _ENCODING if name in manifest.settings}
    if "crop" in sample.metadata:  # of three squares
        settings["crop"] = sample.metadata["crop"]
    given: dict[str, Any] = {"annotations": str(truth)} if sample.annotations and truth.is_file() else {}
    try:
        made = sandbox.call(encode_clip, path, sample.metadata["pts_seconds"], **settings, **given)
    except VideoError as error:
        return "unknown", str(error)
    return _compare_frames(made, sample, with_truth=bool(given))


def _find_video(root: Path, path: Path) -> Path | None:
    """Return where a video is: where it was scanned or, if the root has moved, with the rendered videos."""
    places = [path, *(folder / path.name for folder in list_folders(root / "videos"))]
    return next((place for place in places if file_state(place).num_bytes >= 0), None)


def _compare_frames(made: EncodedClip, sample: ShardSample, *, with_truth: bool) -> tuple[Verdict, str]:
    left_out = "; its ground truth was not compared" if sample.annotations and not with_truth else ""
    if made.images == sample.images:
        if with_truth and made.annotations != sample.annotations:
            return "differs", "the same frames with other ground truth"
        return "equal", left_out.removeprefix("; ")
    was, now = sample.metadata["decoder"], made.metadata["decoder"]
    furthest = max(
        int(np.abs(decompress(a).astype(int) - decompress(b).astype(int)).max(initial=0))
        for a, b in zip(made.images, sample.images, strict=True)
    )
    if not furthest:
        return "close", f"the same pixels in other bytes, as another Pillow writes them{left_out}"
    if was != now:
        return "unknown", f"decoded by {was}, here by {now}; pixels differ by up to {furthest} of 255"
    return "differs", f"pixels differ by up to {furthest} of 255"


def _remake_tokens(
    root: Path, folder: Path, shards: str, samples: Sequence[ShardSample], sound: Sequence[Path]
) -> Iterator[Remade]:
    """Yield how the tokens of one feature set compare, if it was made from these shards."""
    manifest = peek_manifest(folder)
    if manifest is None or _shards_of(root, manifest.settings) != shards:
        return
    reader, name = FeatureReader(folder), manifest.stage.partition("/")[2]
    rows = {key: number for number, key in enumerate(reader.keys)}
    files = {row.key: folder / row.file for row in read_rows(folder / CLIPS_TABLE, ClipRow)}
    make, problem = None, ""
    try:
        make = _maker(root, reader.metadata, sound)
    except VidflowError as error:
        problem = str(error)
    for sample in samples:
        if sample.key not in rows:
            continue  # rejected, as its tokens were not finite
        verdict: Verdict = "unknown"
        detail = problem
        if make is not None:
            stored = reader[rows[sample.key]]
            verdict, detail = _compare_tokens(make(sample), stored, reader.metadata["encoder"]["dtype"])
        yield Remade(key=sample.key, what=f"tokens {name}", file=files[sample.key], verdict=verdict, detail=detail)


def _shards_of(root: Path, settings: Mapping[str, Any]) -> str:
    """Return the key of the shards that features come from, also through features without reduction."""
    if "dense" not in settings:
        return str(settings.get("shards", ""))
    dense = peek_manifest(root / "features" / settings["dense"])
    return "" if dense is None else str(dense.settings.get("shards", ""))


def _maker(root: Path, metadata: Mapping[str, Any], sound: Sequence[Path]) -> Any:
    """Return a function that makes the tokens of a sample again.

    Raises:
        VidflowError: If that cannot be done here; the message says why.
    """
    settings = metadata["settings"]
    if "dense" in settings:
        dense = root / "features" / settings["dense"]
        if dense not in sound:
            raise VidflowError("the features without reduction that it was made from are not there, or broken")
        reducer = build_reducer(**_words(settings["reducer"]))
        assert isinstance(reducer, PostReducer)
        return functools.partial(_reduce, FeatureReader(dense), reducer)
    description = metadata["encoder"]
    if "family" in description:
        raise VidflowError(f"a video transformer ({description['family']}) is not built again from its description")
    reduction = build_reducer(**_words(settings["features"]["reducer"]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return functools.partial(_encode, rebuild_encoder(description, device=device, reduction=reduction))


def _words(reducer: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": reducer["name"], "place": reducer["place"], **reducer["settings"]}


def _reduce(reader: FeatureReader, reducer: PostReducer, sample: ShardSample) -> ClipTokens:
    height, width = reader.metadata["grid"]
    return reduce_clip(reducer, reader[reader.keys.index(sample.key)], height=height, width=width)


def _encode(encoder: FrozenEncoder, sample: ShardSample) -> Any:
    frames = torch.from_numpy(np.stack([decompress(image) for image in sample.images]))
    (arrays,) = encoder.encode(fit_frames(frames, encoder.img_size)[None]).clips()
    return arrays


def _compare_tokens(made: Any, stored: ClipTokens, dtype: str) -> tuple[Verdict, str]:
    """Compare tokens and prefix; `made` is a `ClipTokens` or the encoder's `TokenArrays`."""
    if not np.array_equal(made.counts, stored.counts) or not _same(made.assignment, stored.assignment):
        # Two tokens that are equally alike but for rounding may change places in the order of merging.
        return "unknown", "other patches were merged, which rounding alone can cause; not comparable"
    error = max(_relative(made.tokens, stored.tokens), _relative(made.prefix, stored.prefix))
    if not error:
        return "equal", ""
    tolerance = TOLERANCE[dtype]
    verdict: Verdict = "close" if error <= tolerance else "differs"
    return verdict, f"relative error {error:.1e}, {tolerance:.0e} allowed for {dtype} stored in fp16"


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))


def _relative(made: np.ndarray, stored: np.ndarray) -> float:
    if made.shape != stored.shape:
        return float("inf")
    difference = float(np.linalg.norm(made.astype(np.float64) - stored.astype(np.float64)))
    return difference / max(float(np.linalg.norm(stored.astype(np.float64))), 1e-12)


__all__ = ["TOLERANCE", "Remade", "draw_clips", "remake"]
