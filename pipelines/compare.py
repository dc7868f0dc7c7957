"""Compare finished sweeps on one page: `vidflow compare ROOT|SWEEP|CONFIG ... --to FILE.html`."""

import logging
from collections.abc import Sequence
from pathlib import Path

from vidflow.errors import ConfigError
from vidflow.objects import show_urls
from vidflow.report.compare import render_comparison
from vidflow.report.sweeps import find_sweeps, read_bests
from vidflow.store.layout import publish

log = logging.getLogger("vidflow")


def main(words: Sequence[str], page: Path) -> None:
    """Write the page, and log where it is.

    Args:
        words: Roots, sweeps and configs, and `key=value` overrides for the configs.
        page: File to write.

    Raises:
        ConfigError: If a word names no finished sweep, or the page cannot be written there.
        VidflowError: If the result of a trial is missing or damaged.
    """
    if page.suffix not in (".html", ".htm"):
        raise ConfigError(f"--to: got {page}; wanted a name that ends in .html")
    places = [word for word in words if "=" not in word or Path(word).exists()]
    if not places:
        raise ConfigError("no sweep given; wanted an experiment's root, a folder ROOT/sweeps/KEY, or a config")
    sweeps = find_sweeps(places, [word for word in words if word not in places])
    bests = [best for sweep in sweeps for best in read_bests(sweep)]
    if not bests:
        raise ConfigError(f"{', '.join(places)}: no trial has a score")
    text = render_comparison(bests, page=page, num_sweeps=len(sweeps))
    try:
        with publish(page) as aside:
            aside.write_text(show_urls(text), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--to: {page}: cannot be written ({error.strerror}); wanted a file in a folder") from error
    log.info("compare: %d sweep%s -> %s", len(sweeps), "" if len(sweeps) == 1 else "s", page)
