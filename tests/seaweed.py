"""A real S3 server for tests: SeaweedFS, one process on 127.0.0.1, with credentials, stopped by its own pid."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = ["BINARY", "serve"]

BINARY = Path(sys.executable).with_name("weed")
KEY, SECRET = "btm-test-key", "btm-test-secret"


@contextmanager
def serve(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server on free ports; yields the AWS environment that reaches it. A bucket `btm` is there."""
    names = ["master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    identities = [
        {"name": "btm", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin", "Read", "Write"]}
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    flags = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-s3", f"-s3.config={folder / 's3.json'}"]
    flags += [f"-{name.partition('.')[0]}.port{'.grpc' if '.' in name else ''}={port}" for name, port in ports.items()]
    flags += ["-master.electionTimeout=1s", "-volume.preStopSeconds=0", "-master.telemetry=false", "-volume.max=100"]
    flags += ["-master.volumeSizeLimitMB=64"]
    environment = {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    with ExitStack() as stack:
        log = stack.enter_context((folder / "server.log").open("wb"))
        process = subprocess.Popen(
            [str(BINARY), "server", *flags],
            stdout=log,
            stderr=log,
            env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        )
        try:
            _wait_until_ready(environment, process)
            yield environment
        finally:
            process.kill()  # nothing it holds is wanted any more, and it takes its time to end by itself
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_ready(environment: dict[str, str], process: "subprocess.Popen[bytes]") -> None:
    """Wait for a signed PUT and GET: S3 listens before there is anything to write to, and answers 500 until then."""
    import s3fs

    deadline = time.monotonic() + 60
    while True:
        try:
            fs = s3fs.S3FileSystem(
                key=KEY, secret=SECRET, endpoint_url=environment["AWS_ENDPOINT_URL_S3"], skip_instance_cache=True
            )
            if not fs.exists("btm"):
                fs.mkdir("btm")
            fs.pipe_file("btm/ready", b"yes")
            assert fs.cat_file("btm/ready") == b"yes"
            fs.rm_file("btm/ready")
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("SeaweedFS did not get ready") from error
            time.sleep(0.2)
