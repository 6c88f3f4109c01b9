"""A real S3 server for tests: SeaweedFS, one process on 127.0.0.1, with credentials, stopped by its own pid."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.stack.ports import free_ports

__all__ = ["BINARY", "Server", "free_ports", "serve"]

BINARY = Path(sys.executable).with_name("weed")
KEY, SECRET = "btm-test-key", "btm-test-secret"
PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")


class Server:
    """A server in a folder of its own that can be killed and started again on the same ports. It has a bucket `btm`."""

    def __init__(self, folder: Path, *flags: str):
        self.folder = folder
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The endpoint of S3."""
        return f"http://127.0.0.1:{self.ports['s3']}"

    @property
    def environment(self) -> dict[str, str]:
        """The AWS environment that reaches it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start, and wait until it takes and gives back an object."""
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        identities = [{"name": "btm", "credentials": credentials, "actions": ["Admin", "Read", "Write"]}]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))
        flags = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self.folder}"]
        flags += ["-s3", f"-s3.config={self.folder / 's3.json'}"]
        for name, port in self.ports.items():
            service, _, protocol = name.partition(".")
            flags.append(f"-{service}.port{protocol and '.' + protocol}={port}")
        flags += ["-master.electionTimeout=1s", "-volume.preStopSeconds=0", "-master.telemetry=false"]
        flags += ["-volume.max=100", "-master.volumeSizeLimitMB=64"]
        flags += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # else 8181 and 9101
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(BINARY), "server", *flags, *self.flags],
                stdout=log,
                stderr=log,
                env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill it with SIGKILL: nothing is flushed, nobody is told."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        for name, port in self.ports.items():
            Path(f"/tmp/seaweedfs-{name.replace('.', '-')}-{port}.sock").unlink(missing_ok=True)

    def _wait_until_ready(self) -> None:
        """Wait for a signed PUT and GET: S3 listens before it can store anything, and answers 500 until then."""
        import s3fs

        assert self._process is not None
        deadline = time.monotonic() + 60
        while True:
            try:
                fs = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=self.url, skip_instance_cache=True)
                if not fs.exists("btm"):
                    fs.mkdir("btm")
                fs.pipe_file("btm/ready", b"yes")
                assert fs.cat_file("btm/ready") == b"yes"
                fs.rm_file("btm/ready")
                return
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"SeaweedFS did not get ready: {self.folder / 'server.log'}") from error
                time.sleep(0.2)


@contextmanager
def serve(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server; yields the AWS environment that reaches it. A bucket `btm` is there."""
    server = Server(folder)
    server.start()
    try:
        yield server.environment
    finally:
        server.kill()  # nothing it holds is wanted any more, and it takes its time to end by itself
