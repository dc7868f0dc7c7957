"""Suggest the nearest valid name for a name that is not valid."""

import difflib
from collections.abc import Sequence


def nearest_hint(name: str, names: Sequence[str]) -> str:
    """Return `did you mean ...?`, or all valid names if none is near."""
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"did you mean `{nearest[0]}`?" if nearest else f"valid here: {', '.join(names)}"


__all__ = ["nearest_hint"]
