"""Compare every file of an experiment with what is recorded of it: `vidflow verify [ROOT|CONFIG.yaml]`."""

import argparse
import importlib
import logging
import shlex
import shutil
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.display import Bar, count, shown
from vidflow.counts import Count
from vidflow.errors import ConfigError, VidflowError
from vidflow.objects import show_urls
from vidflow.report.formats import format_bytes
from vidflow.stages.findings import Finding, Level, Verified
from vidflow.stages.sources import RUNS, find_roots
from vidflow.stages.verify import repair, verify_root
from vidflow.store.layout import list_folders

log = logging.getLogger("vidflow")
_MOST_ROWS = 20
_MAKERS = {
    "videos": "synth",
    "index": "shard",
    "shards": "shard",
    "features": "extract",
    "sweeps": "sweep",
    "trials": "sweep",
    "initial": "sweep",
    "reports": "report",
    "plans": "plan",
    "evaluations": "evaluate",
    "heads": "evaluate",
    "journal": "sync",
}
"""Folder in a root -> the command that makes its files again."""
_HEADS: dict[Level, str] = {
    "broken": "broken",
    "unfinished": "not finished; the command named goes on with it, `vidflow gc` deletes what no config needs",
    "leftover": "left over; --repair and `vidflow gc` delete it",
    "unknown": "not vidflow's; left alone",
}


def main(parsed: argparse.Namespace) -> None:
    """Verify the roots, print what is found, and repair if that is asked for.

    Raises:
        ConfigError: If a place is no experiment.
        VidflowError: If something is broken and stays so.
    """
    roots, _ = find_roots(parsed.places)
    if not roots:
        raise ConfigError(f"no experiment below {RUNS.absolute()}; name a root or a config")
    check_weights = _weights_checker()
    broken = [str(root) for root in roots if not _verify(root, check_weights, parsed)]
    if broken and parsed.repair:
        raise VidflowError(f"{', '.join(broken)}: not all of what is listed above can be repaired by deleting files")
    if broken:
        raise VidflowError(
            f"{', '.join(broken)}: broken, as listed above; `vidflow verify {shlex.join(broken)} --repair` deletes "
            "what is broken, then `vidflow run` with the same config makes exactly that again"
        )


def _verify(root: Path, check_weights: Callable[[Path], str], parsed: argparse.Namespace) -> bool:
    """Return whether a root is sound, or is now."""
    started = time.monotonic()
    bar = Bar(f"verify {root.name}", None, unit="MB")
    with shown(bar):
        verified = verify_root(root, check_weights, start=lambda num_bytes: _counter(bar, num_bytes))
    seconds = time.monotonic() - started
    print(show_urls("\n".join([str(root), *_table(verified), *_unchecked(verified)])))
    log.info(
        "verify: %s: %s, %s in %.1f s (%.0f MB/s); %s",
        root,
        count(verified.num_files, "file"),
        format_bytes(verified.num_bytes),
        seconds,
        verified.num_bytes / 1e6 / seconds,
        _judge(verified),
    )
    is_sound = not verified.broken
    if parsed.repair:
        is_sound = all(each.removes for each in verified.broken)
        _repair(verified, check_weights)
    if parsed.deep:
        is_sound = _remake(verified, parsed) and is_sound
    return is_sound


def _judge(verified: Verified) -> str:
    unfinished = sum(finding.level == "unfinished" for finding in verified.findings)
    more = f"{unfinished} not finished" if unfinished else ""
    return ", ".join(filter(None, [f"{len(verified.broken)} broken" if verified.broken else "sound", more]))


def _weights_checker() -> Callable[[Path], str]:
    """Return a function that looks into the weights of unfinished trials; torch is imported when it is first called."""

    def check(path: Path) -> str:
        found: str = importlib.import_module("vidflow.training.snapshot").find_damage(path)
        return found

    return check


def _counter(bar: Bar, num_bytes: int) -> Count:
    bar.total, done = -(-num_bytes // 10**6), 0

    def add(num_done: int, *, num_rejects: int = 0) -> None:  # noqa: ARG001 - as `Count`
        nonlocal done
        done += num_done
        bar.update(-(-done // 10**6))

    return add


def _table(verified: Verified) -> list[str]:
    """Return what is not as it should be, by its level; long lists are cut."""
    lines: list[str] = []
    for level, head in _HEADS.items():
        found = [finding for finding in verified.findings if finding.level == level]
        if not found:
            continue
        rows = [_row(verified.root, finding) for finding in found[:_MOST_ROWS]]
        lines += ["", f"{head}: {len(found)}", *format_rows(rows)]
        lines += [f"  and {len(found) - _MOST_ROWS} more"] if len(found) > _MOST_ROWS else []
    return lines


def _row(root: Path, finding: Finding) -> list[str]:
    """Return where, why, and what makes it again."""
    place = finding.path.relative_to(root)
    maker = _MAKERS.get(place.parts[0]) if finding.level in ("broken", "unfinished") else None
    return [str(place), finding.problem, f"vidflow {maker}" if maker else ""]


def format_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table; on a narrow terminal each row has a line for its first column and lines for the others."""
    width = shutil.get_terminal_size().columns
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    if sum(widths) + 2 * len(widths) <= width:
        return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines = []
    for first, *others in rows:
        rest = "; ".join(filter(None, others))
        lines += [
            f"  {first}",
            *textwrap.wrap(rest, max(40, width - 4), initial_indent="    ", subsequent_indent="    "),
        ]
    return lines


def _unchecked(verified: Verified) -> list[str]:
    rows = [f"{count(number, 'file')}: {reason}" for reason, number in verified.unchecked.items()]
    if verified.num_sized:
        rows.append(
            f"{count(verified.num_sized, 'file')}: only the size is recorded, by an older vidflow; it is compared"
        )
    return ["", "not checked:", *(f"  {row}" for row in rows)] if rows else []


def _repair(verified: Verified, check_weights: Callable[[Path], str]) -> None:
    number = 0
    for path in repair(verified, check_weights):
        number += 1
        log.info("verify: deleted %s", path)
    log.info(
        "verify: %s deleted%s",
        count(number, "file"),
        "; next: `vidflow run` with the same config makes them again" if number else "",
    )


def _remake(verified: Verified, parsed: argparse.Namespace) -> bool:
    """Make random clips again, print how they compare, and return whether none differs."""
    remake: Any = importlib.import_module("vidflow.stages.remake")  # imports torch
    root = verified.root
    unsound = {path.parent for finding in verified.broken for path in (finding.path, *finding.removes)}
    sound = {path for stage in ("shards", "features") for path in list_folders(root / stage)} - unsound
    chosen = remake.draw_clips(root, parsed.deep, seed=parsed.seed, sound=sound)
    number = sum(map(len, chosen.values()))
    if not number:
        print("\nno clip to make again: there are no finished shards that are sound")
        return True
    bar, results = Bar("make again", None, unit="comparisons"), []
    with shown(bar):
        for each in remake.remake(root, chosen, sound=sound):
            results.append(each)
            bar.update(len(results))
    print(f"\n{count(number, 'clip')} made again, drawn with --seed {parsed.seed}")
    verdicts = ("equal", "close", "differs", "unknown")
    counts = Counter((each.what, each.verdict) for each in results)
    whats = list(dict.fromkeys(each.what for each in results))
    head = ["", "equal", "equal but for rounding", "DIFFERS", "not comparable"]
    print("\n".join(format_rows([head, *([what, *(str(counts[what, each]) for each in verdicts)] for what in whats)])))
    rows = {(each.what, each.verdict, each.detail): each for each in results if each.detail and each.verdict != "close"}
    if rows:
        print("\n".join(["", *format_rows([_remade_row(root, each) for each in list(rows.values())[:_MOST_ROWS]])]))
    return not any(each.verdict == "differs" for each in results)


def _remade_row(root: Path, each: Any) -> list[str]:
    return [f"{each.file.relative_to(root)} clip {each.key}", f"{each.what}: {each.detail}"]


__all__ = ["format_rows", "main"]
