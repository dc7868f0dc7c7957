"""Work on untrusted videos in a process that may hang, crash or swell without taking ours along.

Decoders are C code fed with files from anywhere: they loop for ever, write where they must not, and
ask for gigabytes. A child process that lives on from call to call makes the protection nearly free.
"""

import ctypes
import os
import pickle
import resource
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, TypeVar

from vidflow.errors import VideoError

_P = ParamSpec("_P")
_R = TypeVar("_R")

# A fresh interpreter and the imports of the first function; on a laden machine they take long.
_START_SECONDS = 120.0

# Source: prctl(2), PR_SET_PDEATHSIG.
_SET_PARENT_DEATH_SIGNAL = 1

# Characters that are shown of an exception that nobody foresaw.
_MOST_WORDS = 300

_Reply = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection
    imported: set[Callable[..., object]] = field(default_factory=set)

    def stop(self) -> int:
        """Kill and reap the process; return its exit code, negative for a signal."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class Sandbox:
    """Calls functions in a child process with a limit on time and memory; a context manager.

    The child starts with the first call and again after it was lost. It dies with the thread that
    started it, however that ends. Not for calls from two threads at once.
    """

    def __init__(self, *, timeout_seconds: float, memory_mib: int) -> None:
        """Keep the limits; start nothing yet.

        Args:
            timeout_seconds: Wall time of one call; starting the child does not count.
            memory_mib: Private memory of the child in MiB, some 100 of which Python and the decoders take.
        """
        self._timeout_seconds = timeout_seconds
        self._memory_mib = memory_mib
        self._child: _Child | None = None
        self._stop: Callable[[], object] = int  # nothing to stop yet

    def call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call a top-level function in the child and return what it returned.

        Args:
            function: Importable by name; it and its arguments and result are pickled.
            args: The first one names the video in messages.
            kwargs: Further arguments.

        Raises:
            VideoError: As the function raised it, or `Timeout`, `DecoderCrashed` or `OutOfMemory`; `DecoderFailed` if
                it raised anything else, which damaged input makes libraries do in ways that nobody lists.
            RuntimeError: If the function or its result cannot be sent, with the child's traceback: a bug.
        """
        subject = str(args[0]) if args else function.__name__
        request = pickle.dumps((function, args, kwargs))
        child = self._running()
        try:
            child.connection.send_bytes(request)
            is_new = function not in child.imported
            kind, value = self._receive(child, _START_SECONDS if is_new else self._timeout_seconds, subject)
            if kind == "begun":
                child.imported.add(function)
                kind, value = self._receive(child, self._timeout_seconds, subject)
        except (EOFError, ConnectionError):
            self._raise_crash(child, subject)
        except BaseException:
            self.close()  # an interrupted call must not leave its reply for the next one
            raise
        match kind:
            case "result":
                result: _R = value
                return result
            case "video error":
                raise VideoError(*value)
            case "memory":
                self.close()  # what failed half-way may be left in any state
                raise VideoError("OutOfMemory", f"{subject}: {self._out_of_memory()}")
            case "failed":
                self.close()  # likewise
                raise VideoError(
                    "DecoderFailed", f"{subject}: {function.__name__} failed ({value}); fetch it again or leave it out"
                )
            case _:
                self.close()
                raise RuntimeError(f"{function.__name__} failed on {subject} in the decoder process:\n{value}")

    def start(self) -> None:
        """Start the child, where there is none, as a child of this thread."""
        self._running()

    def close(self) -> None:
        """Stop the child, if there is one; the next call starts another."""
        self._stop()
        self._child = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> _Child:
        """Return the child, a new one where there is none or it died between two calls."""
        if self._child is not None and self._child.process.poll() is not None:
            self.close()
        if self._child is None:
            self._child = _start(self._memory_mib)
            self._stop = weakref.finalize(self, self._child.stop)  # also where nobody calls close
        return self._child

    def _receive(self, child: _Child, seconds: float, subject: str) -> _Reply:
        if child.connection.poll(seconds):
            reply: _Reply = child.connection.recv()
            return reply
        raise VideoError(
            "Timeout",
            f"{subject}: took longer than {seconds:g} s and was stopped; raise "
            "resources.decode_timeout_seconds or leave it out",
        )

    def _raise_crash(self, child: _Child, subject: str) -> NoReturn:
        """Say what the child died of."""
        code = child.process.wait()
        self.close()
        if code == -signal.SIGKILL:
            raise VideoError("OutOfMemory", f"{subject}: {self._out_of_memory()}")
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise VideoError("DecoderCrashed", f"{subject}: the decoder died of {cause}; re-encode it or leave it out")

    def _out_of_memory(self) -> str:
        return (
            f"needs more than the {self._memory_mib} MiB allowed, or than the machine has; raise "
            "resources.decode_memory_mib or leave it out"
        )


def _start(memory_mib: int) -> _Child:
    ours, theirs = Pipe()
    program = "import sys; from vidflow.video.sandbox import serve; serve(*map(int, sys.argv[1:]))"
    arguments = [theirs.fileno(), os.getpid(), memory_mib]
    # One core's worth of threads, and our import path, as what we can import the child must.
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        env={**os.environ, **environment},
    )
    theirs.close()
    return _Child(process, ours)


def serve(descriptor: int, parent: int, memory_mib: int) -> None:
    """Answer calls until the other end is closed; the program of the child.

    Args:
        descriptor: Our end of the pipe.
        parent: Process id of the caller.
        memory_mib: Limit on private memory in MiB.
    """
    _limit(parent, memory_mib)
    connection: Connection = Connection(descriptor)
    # What goes wrong here and not in the call is a bug: it ends this process, and its traceback is our last word.
    sys.excepthook = lambda _, error, __: connection.send(("bug", "".join(traceback.format_exception(error))))
    imported: set[Callable[..., object]] = set()
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, ConnectionError):
            return
        function, args, kwargs = pickle.loads(request)  # noqa: S301 - from our own parent
        if function not in imported:
            connection.send(("begun", None))
            imported.add(function)
        connection.send(_answer(function, args, kwargs))


def _limit(parent: int, memory_mib: int) -> None:
    """Bound our memory and our life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Not RLIMIT_AS: it counts libraries and mere reservations, gigabytes of them.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mib << 20, memory_mib << 20))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to be told
        sys.exit(1)


def _answer(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Reply:
    try:
        return "result", function(*args, **kwargs)
    except VideoError as error:
        return "video error", (error.reason, str(error))
    except MemoryError:
        return "memory", None
    except Exception as error:  # one input must not stop a run, whatever a library makes of it
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{type(error).__name__}: {str(error)[:_MOST_WORDS]}, in {where.name}"
