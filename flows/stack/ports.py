"""Ports of the services: free ones that nobody else gets while a service is down.

The kernel gives outgoing connections ports of its ephemeral range. One of those, chosen for a service, may be taken
by anybody's connection while the service is restarted, and the service would have to move.
"""

import secrets
import socket
from collections.abc import Collection
from pathlib import Path

from flows.stack.processes import StackError

__all__ = ["HOST", "free_ports", "is_free"]

HOST = "127.0.0.1"
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LINUX = 32768, 60999  # its default; elsewhere the range begins higher, so it is avoided all the same
LOWEST = 10000  # below are the well-known ones


def free_ports(count: int, without: Collection[int] = (), ephemeral: tuple[int, int] | None = None) -> list[int]:
    """Return `count` different ports that were free a moment ago, at random, outside the kernel's ephemeral range.

    `without` names ports that are spoken for. Where that range leaves less than a thousand, any port from 10000 on will
    do. Raises StackError if there are not so many.
    """
    first, last = ephemeral or _ephemeral_range()
    every = range(LOWEST, 65536)
    outside = [port for port in every if not first <= port <= last]
    candidates = outside if len(outside) >= 1000 else list(every)
    secrets.SystemRandom().shuffle(candidates)  # two stacks that start at once choose others
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        if port not in without and is_free(port):
            found.append(port)
    if len(found) < count:
        raise StackError(f"{count} free ports are needed on {HOST}, there are {len(found)}")
    return found


def is_free(port: int) -> bool:
    """Return whether a service could listen on a port of this machine."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended a moment ago do not matter
        try:
            one.bind((HOST, port))
        except OSError:
            return False
        return True


def _ephemeral_range() -> tuple[int, int]:
    try:
        first, last = map(int, EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return LINUX
    return first, last
