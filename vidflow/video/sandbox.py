"""Process untrusted videos in a child process that may hang, crash or run out of memory without harm to ours.

Decoders are C code that reads files from anywhere. A bad file can make them loop for ever, corrupt memory or
allocate gigabytes. The child process is kept from call to call, so the protection costs almost nothing.
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
from vidflow.files import use_copies_only

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Limit for starting an interpreter and importing the first function, which is slow on a busy machine.
_START_SECONDS = 120.0

# Source: prctl(2), PR_SET_PDEATHSIG.
_SET_PARENT_DEATH_SIGNAL = 1

# Length of the message shown of an unexpected exception.
_MAX_CHARACTERS = 300

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
    """Calls functions in a child process with a limit on time and memory. It is a context manager.

    The child starts at the first call, and again if it has died. It is killed when the thread that
    started it ends, for any reason. Only one thread may call at a time.
    """

    def __init__(self, *, timeout_seconds: float, memory_mib: int) -> None:
        """Set the limits; the child is not started yet.

        Args:
            timeout_seconds: Wall time of one call; starting the child does not count.
            memory_mib: Private memory of the child in MiB; Python and the decoders need about 100.
        """
        self._timeout_seconds = timeout_seconds
        self._memory_mib = memory_mib
        self._child: _Child | None = None
        self._stop: Callable[[], object] = int  # nothing to stop yet

    def call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call a top-level function in the child and return what it returned.

        Args:
            function: Importable by name. The function, its arguments and its result are pickled.
            args: The first one names the video in messages.
            kwargs: Further arguments.

        Raises:
            VideoError: The one that the function raised, or `Timeout`, `DecoderCrashed` or `OutOfMemory`. If the
                function raised another exception, `DecoderFailed`: damaged input can cause any exception in a library.
            RuntimeError: If the function or its result cannot be pickled. That is a bug; the message has the child's
                traceback.
        """
        subject = str(args[0]) if args else function.__name__
        request = pickle.dumps((function, args, kwargs))
        child = self._ensure_child()
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
            self.close()  # the next call must not receive the reply of an interrupted one
            raise
        match kind:
            case "result":
                result: _R = value
                return result
            case "video error":
                raise VideoError(*value)
            case "memory":
                self.close()  # the child's state is unknown after a failure
                raise VideoError("OutOfMemory", f"{subject}: {self._memory_message()}")
            case "failed":
                self.close()  # the same
                raise VideoError(
                    "DecoderFailed",
                    f"{subject}: {function.__name__} failed ({value}); fetch the file again or leave it out",
                )
            case _:
                self.close()
                raise RuntimeError(f"{function.__name__} failed on {subject} in the decoder process:\n{value}")

    def start(self) -> None:
        """Start the child from this thread, if there is none."""
        self._ensure_child()

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

    def _ensure_child(self) -> _Child:
        """Return the child; start one if there is none or it has died."""
        if self._child is not None and self._child.process.poll() is not None:
            self.close()
        if self._child is None:
            self._child = _start_child(self._memory_mib)
            self._stop = weakref.finalize(self, self._child.stop)  # also if nobody calls close
        return self._child

    def _receive(self, child: _Child, seconds: float, subject: str) -> _Reply:
        if child.connection.poll(seconds):
            reply: _Reply = child.connection.recv()
            return reply
        raise VideoError(
            "Timeout",
            f"{subject}: took longer than {seconds:g} s and was stopped; raise "
            "resources.decode_timeout_seconds or leave the file out",
        )

    def _raise_crash(self, child: _Child, subject: str) -> NoReturn:
        """Raise an error that says how the child died."""
        code = child.process.wait()
        self.close()
        if code == -signal.SIGKILL:
            raise VideoError("OutOfMemory", f"{subject}: {self._memory_message()}")
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise VideoError(
            "DecoderCrashed", f"{subject}: the decoder died of {cause}; re-encode the file or leave it out"
        )

    def _memory_message(self) -> str:
        return (
            f"needs more memory than the {self._memory_mib} MiB allowed, or than the machine has; raise "
            "resources.decode_memory_mib or leave the file out"
        )


def _start_child(memory_mib: int) -> _Child:
    ours, theirs = Pipe()
    program = "import sys; from vidflow.video.sandbox import serve; serve(*map(int, sys.argv[1:]))"
    arguments = [theirs.fileno(), os.getpid(), memory_mib]
    # One thread per library. Our import path, so that the child can import what we can.
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
    """Answer calls until the other end of the pipe is closed. This is the program of the child.

    Args:
        descriptor: The child's end of the pipe.
        parent: Process id of the caller.
        memory_mib: Limit on private memory in MiB.
    """
    _limit_process(parent, memory_mib)
    use_copies_only()
    connection: Connection = Connection(descriptor)
    # An exception outside the called function is a bug. It ends this process, which first sends the traceback.
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
        connection.send(_call_function(function, args, kwargs))


def _limit_process(parent: int, memory_mib: int) -> None:
    """Limit the memory of this process, and kill it when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Not RLIMIT_AS, which also counts libraries and reserved address space: gigabytes.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mib << 20, memory_mib << 20))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl was called
        sys.exit(1)


def _call_function(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Reply:
    try:
        return "result", function(*args, **kwargs)
    except VideoError as error:
        return "video error", (error.reason, str(error))
    except MemoryError:
        return "memory", None
    except Exception as error:  # one input must not stop a run, and libraries may raise anything
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{type(error).__name__}: {str(error)[:_MAX_CHARACTERS]}, in {where.name}"
