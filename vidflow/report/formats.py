"""Numbers as people read them."""

from collections.abc import Sequence

_SHARES = ("top1", "top5")


def is_share(metric: str) -> bool:
    """Whether a metric is a share of clips, which is shown in percent."""
    return metric.rsplit("/", 1)[-1] in _SHARES


def format_metric(metric: str, value: float | None) -> str:
    """Return a metric's value as people read it: `86.4 %` for a share, else four digits."""
    if value is None:
        return "—"
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.4g}"


def format_interval(metric: str, low: float, high: float) -> str:
    """Return the ends of an interval with one unit, such as `79.0 to 92.2 %`."""
    return f"{100 * low:.1f} to {100 * high:.1f} %" if is_share(metric) else f"{low:.4g} to {high:.4g}"


def format_bytes(number: int | float) -> str:
    """Return a size with a decimal unit and three digits, such as `1.53 GB`."""
    text = format_magnitude(number, ("", "k", "M", "G", "T"))
    return f"{text}B" if " " in text else f"{text} B"


def format_magnitude(number: int | float, prefixes: Sequence[str] = ("", "k", "M", "B")) -> str:
    """Return a count with three digits, such as `9.86 M`; `B` is 1e9, as is usual for parameters."""
    for prefix in prefixes[:-1]:
        if number < 999.5:  # a larger number would be rounded to 1000
            return f"{number:.3g} {prefix}".rstrip()
        number /= 1000
    return f"{number:.3g} {prefixes[-1]}"


def format_seconds(seconds: int | float) -> str:
    """Return a duration in its two largest units, such as `3 min 20 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_change(metric: str, value: float, baseline: float) -> str:
    """Return how a value differs from a baseline: `+76.4 points` for a share, else relative to it, such as `-42 %`."""
    if is_share(metric):
        return f"{100 * (value - baseline):+.1f} points"
    return f"{100 * (value / baseline - 1):+.0f} %" if baseline else f"{value - baseline:+.4g}"
