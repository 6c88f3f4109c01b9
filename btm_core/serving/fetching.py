"""Images by URL, for a server that anybody may ask: it must not become their way into its own network.

A host is resolved once, its addresses are judged, and the connection goes to the address that was judged: a name that
means something else a moment later gains nothing. Redirects are judged in the same way. Proxies of the environment are
not used, since they would resolve names themselves.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import SplitResult, urljoin, urlsplit

from btm_core.errors import DataError
from btm_core.serving.settings import ServingSettings
from btm_core.urls import without_credentials

__all__ = ["fetch_image"]

REDIRECTS = 3
REDIRECTING = (301, 302, 303, 307, 308)
CARRIES_IPV4 = tuple(ipaddress.ip_network(net) for net in ("64:ff9b::/96", "2002::/16"))
"""NAT64 and 6to4: global by their form, but they may lead to any IPv4 address."""


def fetch_image(url: str, settings: ServingSettings) -> bytes:
    """Return what lies at an http or https URL. Raises DataError, in words that show no credentials."""
    deadline = time.monotonic() + settings.url_seconds
    shown = without_credentials(url)
    try:
        for _ in range(REDIRECTS + 1):
            answer = _ask(_checked(url), settings, deadline)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
        raise DataError(f"more than {REDIRECTS} redirects")
    except (OSError, http.client.HTTPException, ValueError) as error:
        late = time.monotonic() >= deadline
        words = f"it took longer than {settings.url_seconds:g} s" if late else str(error) or type(error).__name__
        raise DataError(f"{shown}: {without_credentials(words)}") from None


def _checked(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError("it is, or leads to, no http or https URL")
    if parts.username is not None or parts.password is not None:
        raise DataError("URLs with a user or password are not fetched")
    return parts


def _ask(parts: SplitResult, settings: ServingSettings, deadline: float) -> bytes | str:
    """Return the body, or where a redirect leads."""
    host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
    connection = http.client.HTTPConnection(host, port)
    with closing(connection), _connect(host, port, settings, deadline) as plain, _cut_at(deadline, plain):
        connection.sock = plain
        if parts.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        connection.putrequest("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), skip_host=True)
        connection.putheader("Host", parts.netloc)
        connection.putheader("Connection", "close")
        connection.endheaders()
        with connection.getresponse() as response:
            if response.status in REDIRECTING:
                return response.headers["Location"] or ""
            if response.status != 200:
                raise DataError(f"the server answers {response.status} {response.reason}")
            limit = int(settings.url_megabytes * 1e6)
            body = response.read(limit + 1)
    if len(body) > limit:
        raise DataError(f"more than {settings.url_megabytes:g} MB")
    if time.monotonic() >= deadline:  # being cut off looks like the end
        raise TimeoutError
    return body


@contextmanager
def _cut_at(deadline: float, channel: socket.socket) -> Iterator[None]:
    """End a connection at a deadline: a socket's own timeout begins anew with each byte of a server that is slow."""
    with channel.dup() as same:  # TLS takes the other one over

        def cut() -> None:
            with suppress(OSError):
                same.shutdown(socket.SHUT_RDWR)

        watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()


def _connect(host: str, port: int, settings: ServingSettings, deadline: float) -> socket.socket:
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    allowed = [address for address in found if settings.url_private or _is_public(address)]
    if not allowed:
        raise DataError(f"{host} is an address of a private network, which URLs may not lead to")
    problem: OSError = TimeoutError()
    for address in allowed:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            return socket.create_connection((address, port), timeout=left)
        except OSError as error:
            problem = error
    raise problem


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return found.is_global and not found.is_multicast and not any(found in network for network in CARRIES_IPV4)
