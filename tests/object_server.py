"""A real server that speaks S3, in a process of its own, and a proxy before it that misbehaves as networks do."""

import contextlib
import ctypes
import fcntl
import http.client
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import pyarrow.fs

Fault = Literal["refuse", "slow", "cut", "short", "tag"]
BUCKET = "bucket"
SLOW_SECONDS = 3.0
_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def environment(port: int) -> dict[str, str]:
    """Return the variables by which a process finds the server at a port, and no other."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "us",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def connect(port: int) -> pyarrow.fs.S3FileSystem:
    """Return the objects of a server."""
    return pyarrow.fs.S3FileSystem(
        endpoint_override=f"http://127.0.0.1:{port}", access_key="us", secret_key="secret", allow_bucket_creation=True
    )


@contextlib.contextmanager
def serve_objects() -> Iterator[int]:
    """Start a server with an empty bucket; yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert time.monotonic() < deadline, "no server"
            time.sleep(0.1)
        connect(port).create_dir(BUCKET)
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def closed_network() -> Iterator[bool]:
    """Leave this thread, and what it starts, no network but 127.0.0.1; yield whether the system allows that."""
    system, new_network = ctypes.CDLL(None), 0x40000000
    with open("/proc/thread-self/ns/net") as before:
        if system.unshare(new_network) != 0:
            yield False
            return
        try:
            with socket.socket() as any_socket:  # what `ip link set lo up` does
                fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
            yield True
        finally:
            system.setns(before.fileno(), new_network)


@dataclass
class Proxy:
    """What the proxy does to requests: `fault` says it for a method and a path; `seen` counts what was asked."""

    port: int
    fault: Callable[[str, str], Fault | None] = lambda method, path: None
    seen: list[tuple[str, str]] = field(default_factory=list)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    inner: int

    def _pass_on(self) -> None:
        body = self._read_body()
        self.proxy.seen.append((self.command, self.path))
        fault = self.proxy.fault(self.command, self.path)
        if fault == "refuse":
            self._answer(503, {"Content-Type": "application/xml"}, _BUSY)
            return
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        connection = http.client.HTTPConnection("127.0.0.1", self.inner, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():  # with the host that was signed
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        self._answer(answer.status, dict(answer.getheaders()), answer.read(), fault)
        connection.close()

    def _read_body(self) -> bytes:
        """Return the body as it was sent, with the marks of its chunks if it has some."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while True:
            size = self.rfile.readline()
            body += size + self.rfile.read(int(size.split(b";")[0], 16) + 2)
            if int(size.split(b";")[0], 16) == 0:
                return body

    def _answer(self, status: int, headers: dict[str, str], content: bytes, fault: Fault | None = None) -> None:
        length = headers.get("Content-Length", str(len(content)))
        if fault in ("cut", "short"):
            content = content[: len(content) // 2]
        if fault == "tag" and "ETag" in headers:
            headers["ETag"] = f'"{"0" * 32}"'
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)) if fault == "short" else length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.close_connection = fault == "cut"

    def handle_expect_100(self) -> bool:
        self.send_response_only(100)
        self.end_headers()
        return True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def misbehaving(inner: int) -> Iterator[Proxy]:
    """Put a proxy before the server at a port."""
    handler = type("Handler", (_Handler,), {"inner": inner})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        handler.proxy = Proxy(server.server_address[1])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield handler.proxy
        finally:
            server.shutdown()
