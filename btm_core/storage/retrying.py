"""Faults of a store: which pass, which stay, and the one policy by which operations are tried again.

S3's error codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

import errno
import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from btm_core.errors import BTMError, StoreError, StoreUnavailableError

__all__ = ["ConflictError", "error_code", "retrying"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")

LONGEST_WAIT = 10.0
QUIET_ATTEMPTS = 2
"""A hiccup or two is not worth a line."""


class ConflictError(Exception):
    """A conditional write found something other than it expects."""


EXPIRED = "the credentials have expired: renew them (for example `aws sso login`, or new keys), and run again"
REFUSED = "the server refuses these credentials: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
PERMANENT = {
    "NoSuchBucket": "there is no such bucket: create it, or correct its name",
    "InvalidBucketName": "that is no name for a bucket: correct it",
    "AccessDenied": "access is denied: have the bucket's owner allow these credentials to list, read, write and delete",
    "403": "access is denied: have the bucket's owner allow these credentials to list, read, write and delete",
    "InvalidAccessKeyId": REFUSED,
    "SignatureDoesNotMatch": REFUSED,
    "ExpiredToken": EXPIRED,
    "InvalidToken": EXPIRED,
    "TokenRefreshRequired": EXPIRED,
    "RequestTimeTooSkewed": "this machine's clock differs from the server's by too much: set it (NTP), and run again",
    "AllAccessDisabled": "the account is disabled",
    "AccountProblem": "the account has a problem: ask the provider",
    "QuotaExceeded": "the quota is used up: free space (`btm store gc`), or have it raised",
    "EntityTooLarge": "the server takes no file as large as this: raise its limit",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION or BTM_STORE_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION or BTM_STORE_REGION",
    "MethodNotAllowed": "the server does not allow this: does the bucket accept writes?",
    "NotImplemented": "the server does not know this request: see BTM_STORE_CHECKSUMS",
    "501": "the server does not know this request: see BTM_STORE_CHECKSUMS",
    "XAmzContentChecksumMismatch": "checksums differ on the way: see BTM_STORE_CHECKSUMS",
}
"""What to do about error codes that trying again does not mend."""
LOCAL = {
    errno.ENOSPC: "the disk is full: free space (`btm store gc` helps), and run again",
    errno.EDQUOT: "the quota of the disk is used up: free space (`btm store gc` helps), and run again",
    errno.EROFS: "it is read-only: choose another place",
    errno.EACCES: "access is denied: change its permissions, or choose another place",
    errno.EPERM: "access is denied: change its permissions, or choose another place",
    errno.ENOTDIR: "a part of the path is no folder: choose another place",
    errno.EEXIST: "a file has the name of a folder that is needed: choose another place",
    errno.EISDIR: "it is a folder, and a file is expected: correct the path",
    errno.ENAMETOOLONG: "the path is too long for this file system: choose another place",
}
CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError")
CONFIGURATION = ("ProfileNotFound", "ConfigParseError", "InvalidConfigError", "ParamValidationError", "NoRegionError")
CERTIFICATES = ("SSLError", "ClientConnectorCertificateError", "ClientConnectorSSLError", "SSLCertVerificationError")
PASSING = ("503", "SlowDown", "ServiceUnavailable", "InternalError", "500", "502", "504", "RequestTimeout")


def retrying(call: Callable[[], Result], where: str, deadline: float, *, remote: bool = True) -> Result:
    """Return what `call` returns; on a remote store, faults that pass are tried again for `deadline` seconds.

    Waits grow from a fraction of a second to ten, at random, so that many workers do not come back all at once.
    FileNotFoundError and ConflictError are answers and pass through. Everything else becomes a StoreError that names
    `where` and says what to do; a StoreUnavailableError if it might yet pass.
    """
    tries = Retrying(
        retry=retry_if_exception(lambda error: remote and _may_pass(error)),
        stop=stop_before_delay(deadline),
        wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT),
        before_sleep=lambda state: _tell(state, where),
        reraise=True,
    )
    try:
        return tries(call)
    except (BTMError, ConflictError):
        raise
    except FileNotFoundError as error:
        if error_code(error) != "NoSuchBucket":
            raise
        raise StoreError(f"{where}: {PERMANENT['NoSuchBucket']}") from None
    except Exception as error:  # each file system raises its own
        if remote and _may_pass(error):
            raise StoreUnavailableError(
                f"{where} has not answered as it should for {deadline:g} s: {_words(error)}; is the server up? What "
                "was done is kept: run again when it is (BTM_STORE_DEADLINE_SECONDS waits longer)"
            ) from None
        raise StoreError(f"{where} cannot be used: {_words(error)}; {_advice(error)}") from None


def error_code(error: BaseException) -> str | None:
    """Return the code of the server's answer behind an exception, None if it is no answer."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
    return None


def _may_pass(error: BaseException) -> bool:
    """Whether trying again may help: a server in trouble, a broken connection, a truncated or slow answer."""
    if not isinstance(error, Exception) or isinstance(error, (BTMError, ConflictError, FileNotFoundError)):
        return False
    code = error_code(error)
    if code is not None:
        return code in PASSING or (code not in PERMANENT and not _client_fault(error))
    if type(error).__name__ in (*CREDENTIALS, *CONFIGURATION, *CERTIFICATES):
        return False
    return not isinstance(error, (PermissionError, ValueError, TypeError, NotImplementedError)) and (
        not isinstance(error, OSError) or error.errno not in LOCAL
    )


def _client_fault(error: BaseException) -> bool:
    """Whether the server says that the request was wrong; 408, 409 and 429 ask for patience."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            return 400 <= status < 500 and status not in (408, 409, 429)
    return False


def _advice(error: BaseException) -> str:
    name = type(error).__name__
    if name in CREDENTIALS:
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if name in CERTIFICATES:
        return "is the scheme (http or https) right? For a certificate of one's own see BTM_STORE_TLS_VERIFY"
    if name in CONFIGURATION:
        return "check AWS_PROFILE, AWS_REGION and the BTM_STORE_ settings"
    if str(error).startswith("Invalid endpoint"):
        return "AWS_ENDPOINT_URL_S3 (or BTM_STORE_ENDPOINT) has to be a URL, such as http://HOST:PORT"
    code = error_code(error)
    if code in PERMANENT:
        return PERMANENT[code]
    number = error.errno if isinstance(error, OSError) else None
    return LOCAL.get(number or 0, "check that it exists and may be read and written, or choose another place")


def _words(error: BaseException) -> str:
    code, text = error_code(error), str(error) or type(error).__name__
    return f"{text} ({code})" if code is not None and code not in text else text


def _tell(state: RetryCallState, where: str) -> None:
    if state.attempt_number > QUIET_ATTEMPTS and state.outcome is not None and state.next_action is not None:
        reason = _words(state.outcome.exception() or Exception())
        log.warning("%s: %s; trying again in %.1f s", where, reason, state.next_action.sleep)
