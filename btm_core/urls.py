"""URLs with credentials in them. What a configuration, a hash, a report or a log holds is read by many; so they are
refused where an address is given, and masked where a message may show one.
"""

import re
from typing import Annotated
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import AfterValidator

__all__ = ["Location", "refuse_credentials", "split_credentials", "without_credentials"]

USER = re.compile(r"://[^/?#\s'\"]*@")
SLASHED = re.compile(r"://[^:/?#@\s]*:(?!\d+(?:[/?#\s]|$))[^\s'\"]*@")
"""A password with a slash in it, which is no port."""
SIGNED = re.compile(
    r"([?&](?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|\w*token|\w*key"
    r"|\w*password|\w*secret)=)[^&#\s'\"]+",
    re.IGNORECASE,
)
"""What presigned URLs carry."""


def without_credentials(text: str) -> str:
    """Return a text with what stands before the host of its URLs, and their signatures, masked."""
    return SIGNED.sub(r"\1***", SLASHED.sub("://***@", USER.sub("://***@", text)))


def refuse_credentials(url: str) -> str:
    """Return a URL or path as it is. Raises ValueError, which does not show it, if it carries credentials."""
    if without_credentials(url) != url:
        raise ValueError(
            "the URL carries credentials, which would get into reports and logs; leave them out: S3 gets them by "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by AWS_PROFILE"
        )
    return url


Location = Annotated[str, AfterValidator(refuse_credentials)]
"""A path or URL without credentials."""


def split_credentials(url: str) -> tuple[str, str | None, str | None]:
    """Return an http(s) URL without user and password, and these two, decoded; any other URL as it is."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return url, None, None
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])), user, password
