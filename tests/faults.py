"""What goes wrong between a program and an S3 server, as data: what is done to a request, and to which ones.

`proxy.Proxy` carries it out.
"""

import random
import re
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy import Exchange

__all__ = [
    *("EVERY", "Fault", "Reply", "Rule", "after", "before", "delay", "expired", "flip", "full", "hang", "lose_reply"),
    *("reset", "skewed", "status", "truncate"),
]

EVERY = range(1, sys.maxsize)


@dataclass(frozen=True)
class Reply:
    """What the server says, or what a fault says in its place."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True)
class Fault:
    """A name, and what to do with a request; `act` returns whether it could be done (an empty reply has no end)."""

    name: str
    act: "Callable[[Exchange], bool]"


def status(code: int, error: str = "SlowDown", message: str = "Please reduce your request rate.") -> Fault:
    """Answer with S3's error; nothing reaches the server."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{error}</Code><Message>{message}</Message></Error>'
    reply = Reply(code, error, (("Content-Type", "application/xml"),), body.encode())
    return Fault(f"{code} {error}", lambda exchange: exchange.answer(reply))


expired = status(400, "ExpiredToken", "The provided token has expired.")
skewed = status(403, "RequestTimeTooSkewed", "The difference between the request time and the server's is too large.")
full = status(507, "InsufficientStorage", "There is not enough space on the disk.")
"""What servers say that can tell. SeaweedFS 4.48 cannot: it answers 500 InternalError when no volume may grow."""

reset = Fault("reset", lambda exchange: exchange.reset())
"""Reset the connection (RST) before anything is passed on."""


def _lose(exchange: "Exchange") -> bool:
    exchange.forward()
    return exchange.reset()


lose_reply = Fault("lose_reply", _lose)
"""Let the server do what it is asked to do, then reset the connection instead of replying."""


def truncate(count: int) -> Fault:
    """Pass on so many bytes of the reply's body, at most all but one, then close the connection."""

    def act(exchange: "Exchange") -> bool:
        reply = exchange.forward()
        return exchange.answer(reply, min(count, len(reply.body) - 1)) and exchange.close()

    return Fault("truncate", act)


def hang(count: int | None = None) -> Fault:
    """Pass on so many bytes of the reply's body, at most all but one, then nothing, until the client gives up.

    None: the server does what it is asked to do, and not even the head of its reply arrives.
    """

    def act(exchange: "Exchange") -> bool:
        reply = exchange.forward()
        if count is not None and not exchange.answer(reply, min(count, len(reply.body) - 1)):
            return False
        return exchange.hold()

    return Fault("hang", act)


def delay(seconds: float) -> Fault:
    """Wait before passing the request on."""

    def act(exchange: "Exchange") -> bool:
        exchange.pause(seconds)
        return exchange.answer(exchange.forward())

    return Fault("delay", act)


def flip(position: int) -> Fault:
    """Flip one bit of the reply's body, in the byte at `position` modulo its length. Replies that are errors stay."""

    def act(exchange: "Exchange") -> bool:
        reply = exchange.forward()
        if not reply.body or reply.status >= 300:
            return False
        body = bytearray(reply.body)
        body[position % len(body)] ^= 1
        return exchange.answer(replace(reply, body=bytes(body)))

    return Fault("flip", act)


def before(event: Callable[[], object]) -> Fault:
    """Call a function, say one that kills the server, and only then pass the request on."""

    def act(exchange: "Exchange") -> bool:
        event()
        exchange.note(None)  # whatever becomes of the request now
        return exchange.answer(exchange.forward())

    return Fault("before", act)


def after(event: Callable[[], object]) -> Fault:
    """Let the server do what it is asked to do, then call a function, then reply."""

    def act(exchange: "Exchange") -> bool:
        reply = exchange.forward()
        event()
        return exchange.answer(reply)

    return Fault("after", act)


@dataclass
class Rule:
    """A fault, and the requests it strikes: of those that match, the ones whose number (from 1) is in `at`.

    - method: regular expression for the whole method; target: one searched in path and query. Empty: any.
    - chance: probability to strike, drawn by `seed` for each number in `at`.
    - on: the switch; off, requests are not even counted.
    - seen, done: requests that matched, and faults that really happened.
    """

    fault: Fault
    method: str = ""
    target: str = ""
    at: Container[int] = EVERY
    chance: float = 1.0
    seed: int = 0
    on: bool = True
    seen: int = field(default=0, init=False)
    done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def strikes(self, method: str, target: str) -> bool:
        """Count a request, and return whether it is one of those to strike."""
        if not self.on or not re.fullmatch(self.method or ".*", method) or not re.search(self.target, target):
            return False
        self.seen += 1
        return self.seen in self.at and self._random.random() < self.chance
