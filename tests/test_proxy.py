"""Each fault of the proxy really happens: seen by botocore, which does not try again, and by the server behind it."""

import uuid
from pathlib import Path
from typing import Any

import faults
import pytest
import seaweed
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError, ResponseStreamingError
from botocore.session import get_session
from faults import Fault, Rule
from proxy import Proxy

BODY = bytes(range(256)) * 4096  # 1 MB: more than sockets keep to themselves


class Bucket:
    """Some object of the bucket `btm`, through one endpoint."""

    def __init__(self, url: str, **options: Any):
        self._client = get_session().create_client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=seaweed.KEY,
            aws_secret_access_key=seaweed.SECRET,
            config=Config(retries={"total_max_attempts": 1}, **options),
        )
        self.key = f"a b/é+%/{uuid.uuid4().hex}"

    def put(self, body: bytes = BODY) -> None:
        self._client.put_object(Bucket="btm", Key=self.key, Body=body)

    def get(self) -> bytes:
        body: bytes = self._client.get_object(Bucket="btm", Key=self.key)["Body"].read()
        return body

    def there(self) -> bool:
        found = self._client.list_objects_v2(Bucket="btm", Prefix=self.key)
        return bool(found["KeyCount"])


@pytest.fixture
def bucket(proxy: Proxy) -> Bucket:
    return Bucket(proxy.url)


@pytest.fixture
def behind(s3: dict[str, str], bucket: Bucket) -> Bucket:
    """The same object, seen without the proxy."""
    behind = Bucket(s3["AWS_ENDPOINT_URL_S3"])
    behind.key = bucket.key
    return behind


def test_calm_it_changes_nothing(proxy: Proxy, bucket: Bucket, behind: Bucket) -> None:
    """Signed requests are accepted: Host, path and headers are those that the client signed."""
    bucket.put()
    assert bucket.get() == behind.get() == BODY
    assert [(seen.method, seen.status, seen.fault) for seen in proxy.record] == [("PUT", 200, None), ("GET", 200, None)]
    wrong = Bucket(proxy.url)
    wrong._client._request_signer._credentials.secret_key = "wrong"
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        wrong.put()


@pytest.mark.parametrize(
    ("fault", "code", "error"),
    [
        (faults.status(503), 503, "SlowDown"),
        (faults.status(500, "InternalError"), 500, "InternalError"),
        (faults.expired, 400, "ExpiredToken"),
        (faults.skewed, 403, "RequestTimeTooSkewed"),
        (faults.full, 507, "InsufficientStorage"),
    ],
)
def test_errors_of_s3(proxy: Proxy, bucket: Bucket, behind: Bucket, fault: Fault, code: int, error: str) -> None:
    rule = Rule(fault, "PUT")
    proxy.add(rule)
    with pytest.raises(ClientError) as caught:
        bucket.put()
    assert caught.value.response["Error"]["Code"] == error
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == code
    assert not behind.there()
    assert (rule.seen, rule.done) == (1, 1)
    assert [(seen.status, seen.fault) for seen in proxy.record] == [(code, fault.name)]


@pytest.mark.parametrize(("fault", "committed"), [(faults.reset, False), (faults.lose_reply, True)])
def test_a_reset_before_and_after_the_server_did_it(
    proxy: Proxy, bucket: Bucket, behind: Bucket, fault: Fault, committed: bool
) -> None:
    rule = Rule(fault, at={1})
    proxy.add(rule)
    with pytest.raises(ConnectionClosedError) as caught:
        bucket.put()
    assert "ConnectionResetError" in repr(caught.value.kwargs["error"])
    assert behind.there() == committed
    bucket.put()
    assert (rule.seen, rule.done) == (2, 1)


def test_a_reply_ends_early(proxy: Proxy, bucket: Bucket) -> None:
    rule = Rule(faults.truncate(1000), "GET", at={1})
    proxy.add(rule)
    bucket.put()
    with pytest.raises(ResponseStreamingError, match="IncompleteRead"):
        bucket.get()
    assert bucket.get() == BODY
    assert rule.done == 1


@pytest.mark.parametrize("count", [None, 0, 1000])
def test_a_reply_never_ends(proxy: Proxy, bucket: Bucket, count: int | None) -> None:
    bucket.put()
    rule = Rule(faults.hang(count), "GET", at={1})
    proxy.add(rule)
    impatient = Bucket(proxy.url, read_timeout=0.3)
    impatient.key = bucket.key
    with pytest.raises(ReadTimeoutError):
        impatient.get()
    assert bucket.get() == BODY
    impatient._client.close()
    proxy.stop()  # waits for the thread that holds the reply back
    assert rule.done == 1
    proxy.start()


def test_a_flipped_bit(proxy: Proxy) -> None:
    trusting = Bucket(proxy.url, response_checksum_validation="when_required")
    trusting.put()
    rule = Rule(faults.flip(len(BODY) + 3), "GET", at={1})
    proxy.add(rule)
    found = trusting.get()
    assert [i for i in range(len(BODY)) if found[i] != BODY[i]] == [3]
    assert found[3] ^ BODY[3] == 1
    assert trusting.get() == BODY


def test_a_fault_that_cannot_happen_is_not_counted(proxy: Proxy, bucket: Bucket) -> None:
    rules = [Rule(fault, "PUT") for fault in (faults.truncate(1), faults.hang(1), faults.flip(0))]
    for rule in rules:
        proxy.clear()
        proxy.add(rule)
        bucket.put()
        assert (rule.seen, rule.done) == (1, 0)


def test_events_before_and_after(proxy: Proxy, bucket: Bucket, behind: Bucket) -> None:
    heard: list[bool] = []
    proxy.add(Rule(faults.before(lambda: heard.append(behind.there())), "PUT"))
    bucket.put()
    assert heard == [False] and behind.there()
    bucket.key = behind.key = f"{bucket.key}-2"
    proxy.clear()
    proxy.add(Rule(faults.after(lambda: heard.append(behind.there())), "PUT"))
    bucket.put()
    assert heard == [False, True]


def test_a_delay(proxy: Proxy, bucket: Bucket) -> None:
    proxy.add(Rule(faults.delay(0.2)))
    bucket.put()
    [seen] = proxy.record
    assert seen.fault == "delay" and seen.seconds > 0.2


def test_which_requests(proxy: Proxy, bucket: Bucket) -> None:
    target = Rule(faults.status(503), target=r"^/btm/.*[0-9a-f]{32}$", at=range(2, 4))
    elsewhere = Rule(faults.status(500), "DELETE|GET", "nothing")
    proxy.add(target, elsewhere)
    assert [failed(bucket) for _ in range(5)] == [False, True, True, False, False]
    target.on = False
    failed(bucket)
    assert (target.seen, target.done) == (5, 2)
    assert elsewhere.seen == 0


def test_chance_is_seeded(proxy: Proxy, bucket: Bucket) -> None:
    drawn = []
    for seed in (1, 1, 2):
        proxy.clear()
        proxy.add(Rule(faults.status(503), "PUT", chance=0.5, seed=seed))
        drawn.append([failed(bucket) for _ in range(12)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert 0 < sum(drawn[0]) < 12


def failed(bucket: Bucket) -> bool:
    try:
        bucket.put(b"x")
    except ClientError:
        return True
    return False


@pytest.mark.slow
def test_a_killed_server_is_itself_again_after_a_restart(tmp_path: Path) -> None:
    server = seaweed.Server(tmp_path)
    server.start()
    try:
        with Proxy(server.url, Rule(faults.after(server.kill), "PUT", at={2})) as proxy:
            bucket = Bucket(proxy.url)
            bucket.put()
            bucket.put(BODY[::-1])  # the server said yes, and died
            with pytest.raises(ConnectionClosedError):
                bucket.get()
            server.start()
            assert bucket.get() == BODY[::-1]
    finally:
        server.kill()
