"""Whether a service answers: single requests to this machine, past proxies, without retries."""

import base64
import urllib.request
from collections.abc import Mapping
from secrets import token_hex
from urllib.error import HTTPError

__all__ = ["basic", "expect", "get", "put_and_get"]


def put_and_get(url: str, bucket: str, key: str, secret: str, region: str) -> None:
    """Write and read an object: S3 listens before it has anywhere to write to.

    The bucket is made if it is not there.
    """

    def signed(method: str, path: str, data: bytes | None = None) -> bytes:
        # Not through a client: it would look for profiles and proxies, and try again by itself.
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        request = AWSRequest(method=method, url=f"{url}/{path}", data=data)
        S3SigV4Auth(Credentials(key, secret), "s3", region).add_auth(request)
        return get(f"{url}/{path}", dict(request.headers.items()), data, method)

    try:
        signed("HEAD", bucket)
    except HTTPError as error:
        if error.code != 404:
            raise
        signed("PUT", bucket)
    stamp = token_hex(8).encode()
    signed("PUT", f"{bucket}/health", stamp)
    expect(signed("GET", f"{bucket}/health"), stamp)


def get(url: str, headers: Mapping[str, str] | None = None, data: bytes | None = None, method: str = "") -> bytes:
    """Make one HTTP request and return what it answers; `data` makes it a POST unless `method` says otherwise."""
    content_type = {"Content-Type": "application/json"} if data is not None else {}
    request = urllib.request.Request(url, data, {**content_type, **(headers or {})}, method=method or None)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
        content: bytes = answer.read()
        return content


def basic(auth: str) -> dict[str, str]:
    """Return the header that carries `user:password`."""
    return {"Authorization": "Basic " + base64.b64encode(auth.encode()).decode()}


def expect(answer: bytes, expected: bytes | None = None) -> None:
    """Raise unless the answer is the expected one, or just not empty."""
    if not answer or (expected is not None and answer != expected):
        raise ConnectionError(f"unexpected answer {answer[:100]!r}")
