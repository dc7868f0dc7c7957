"""What every process of Ray that does our work sets for itself."""

import sys

from vidflow.allocator import keep_freed_memory


def prepare_worker() -> None:
    """Keep freed memory, and end without a traceback when Ray stops this process."""
    keep_freed_memory()
    sys.unraisablehook = _report


def _report(unraisable: "sys.UnraisableHookArgs") -> None:
    """Show an exception that nothing can catch, as Python does, unless it is the end of this process.

    Ray stops a process by SIGTERM, at which its handler raises `SystemExit`, and soon after by SIGKILL. If the first
    arrives while an object is being deleted, Python prints a traceback and goes on.
    """
    if not isinstance(unraisable.exc_value, SystemExit):
        sys.__unraisablehook__(unraisable)
