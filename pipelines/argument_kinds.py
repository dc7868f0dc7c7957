"""Kinds of arguments of commands, for `argparse`: each returns the value, or says what was got and what is wanted."""

import argparse
import math
from collections.abc import Callable


def numbers(count: int) -> Callable[[str], list[float]]:
    """Return a parser of `count` numbers separated by commas."""

    def parse(text: str) -> list[float]:
        values = [finite(part) for part in text.split(",")]
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"got {len(values)} numbers in {text!r}, wanted {count}")
        return values

    return parse


def finite(text: str) -> float:
    """Return a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"got {text}, wanted a finite number")
    return value


def positive(text: str) -> float:
    """Return a number above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"got {text}, wanted a number above 0")
    return value


def count(text: str) -> int:
    """Return a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, wanted a number from 1")
    return value


def whole(text: str) -> int:
    """Return a whole number from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"got {text}, wanted a number from 0")
    return value


def port(text: str) -> int:
    """Return the number of a port; 0 is any free one."""
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"got {text}, wanted a port from 0, which is any free one, to 65535")
    return value
