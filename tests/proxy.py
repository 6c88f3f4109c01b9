"""A proxy in front of a real S3 server that does to a program what networks and servers do, by rules, and counts it.

Requests are passed on as they came. Their signature covers the Host header, so the client is given `Proxy.url` as its
endpoint, and the server checks what the client signed. Each request goes over a connection of its own: the server may
be killed and started again on its port at any time.
"""

import os
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from faults import Reply, Rule
from seaweed import free_ports

__all__ = ["Exchange", "Proxy", "Seen"]


@dataclass(frozen=True)
class Seen:
    """A request: when it came (monotonic) and how long it took (seconds), the answer (None: none), what struck it."""

    time: float
    seconds: float
    method: str
    target: str
    status: int | None
    fault: str | None


class Proxy:
    """Listens on 127.0.0.1 from `start` to `stop`, or as a context manager. `record` lists what was answered."""

    def __init__(self, upstream: str, *rules: Rule):
        address = urlsplit(upstream)
        assert address.hostname and address.port
        self.upstream = (address.hostname, address.port)
        self.rules = list(rules)
        self.record: list[Seen] = []
        self.errors: list[BaseException] = []
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        [self.port] = free_ports(1)

    @property
    def url(self) -> str:
        """The endpoint to give to clients."""
        return f"http://127.0.0.1:{self.port}"

    def add(self, *rules: Rule) -> None:
        """Add rules; the first of all that strikes a request decides."""
        with self.lock:
            self.rules += rules

    def clear(self) -> None:
        """Forget all rules: from now on, calm."""
        with self.lock:
            self.rules.clear()

    def start(self) -> None:
        """Listen."""
        self.stopping.clear()
        self._server = _Server(("127.0.0.1", self.port), Exchange)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        """Cut all connections, and wait for their threads. Raises what went wrong inside of the proxy."""
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.cut()
        self._server.server_close()
        if self.errors:
            raise self.errors[0]

    def __enter__(self) -> "Proxy":
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.stop()

    def choose(self, method: str, target: str) -> Rule | None:
        """Count a request with every rule, and return the first that strikes it."""
        with self.lock:
            striking = [rule for rule in self.rules if rule.strikes(method, target)]
        return striking[0] if striking else None


class Exchange(BaseHTTPRequestHandler):
    """A request, and what a fault may do with it."""

    server: "_Server"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        super().finish()

    def serve(self) -> None:
        """Pass the request on, or do what the first rule that strikes it says."""
        assert "Transfer-Encoding" not in self.headers, "a body without Content-Length: the proxy cannot read it"
        self.arrived = time.monotonic()
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.noted = False
        self._reply: Reply | None = None
        self.rule = self.server.proxy.choose(self.command, self.path)
        try:
            if self.rule is None or not self.rule.fault.act(self):
                self.rule = None
                self.answer(self.forward())
        except (OSError, HTTPException):  # the client has gone, or the server is down: then no fault of ours happened
            self.rule = self.rule if self._reply is not None else None
            self.reset()

    def note(self, status: int | None) -> None:
        """Record the request, once and before the client can know of its end, with the answer it gets."""
        if self.noted:
            return
        self.noted = True
        with self.server.proxy.lock:
            if self.rule is not None:
                self.rule.done += 1
            name = self.rule.fault.name if self.rule is not None else None
            seconds = time.monotonic() - self.arrived
            self.server.proxy.record.append(Seen(self.arrived, seconds, self.command, self.path, status, name))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve  # noqa: N815

    def forward(self) -> Reply:
        """Pass the request on, once, and return the server's whole reply."""
        if self._reply is None:
            upstream = HTTPConnection(*self.server.proxy.upstream, timeout=60)
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    upstream.putheader(name, value)
                upstream.endheaders(self.body)
                found = upstream.getresponse()
                self._reply = Reply(found.status, found.reason, tuple(found.getheaders()), found.read())
            finally:
                upstream.close()
        return self._reply

    def answer(self, reply: Reply, count: int | None = None) -> bool:
        """Send a reply, or only so many bytes of its body; False if there are none to be sent."""
        bodiless = self.command == "HEAD" or reply.status in (204, 304)
        if count is not None and (count < 0 or bodiless):
            return False
        kept = [h for h in reply.headers if h[0].lower() not in ("transfer-encoding", "connection")]
        if not bodiless:
            kept = [h for h in kept if h[0].lower() != "content-length"] + [("Content-Length", str(len(reply.body)))]
        head = "".join(f"{name}: {value}\r\n" for name, value in kept)
        sent = b"" if bodiless else reply.body[:count]
        self.note(reply.status)
        self.wfile.write(f"HTTP/1.1 {reply.status} {reply.reason}\r\n{head}\r\n".encode("latin-1") + sent)
        return True

    def reset(self) -> bool:
        """End the connection with RST instead of FIN."""
        self.note(None)
        self.server.open.discard(self.connection)
        self.close_connection = True
        if self.connection.fileno() >= 0:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        return True

    def close(self) -> bool:
        """End the connection, as if all had been said."""
        self.close_connection = True
        return True

    def hold(self) -> bool:
        """Say nothing more until the client has gone, or the proxy is stopped."""
        self.note(None)
        self.close_connection = True
        self.rfile.read(1)
        return True

    def pause(self, seconds: float) -> None:
        """Wait, unless the proxy is stopped."""
        self.server.proxy.stopping.wait(seconds)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet: `Proxy.record` tells all."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing the server waits for them
    request_queue_size = 128
    proxy: Proxy

    def __init__(self, *arguments: Any):
        self.open: set[socket.socket] = set()
        super().__init__(*arguments)

    def cut(self) -> None:
        """Wake whoever waits for a client to say something."""
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has just ended by itself
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.proxy.errors.append(error)
