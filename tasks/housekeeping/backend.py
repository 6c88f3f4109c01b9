"""What only the file system itself can tell of a store: its clock, probes and unfinished uploads."""

import re
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from btm_core.storage import FileFact, ask, open_filesystem

__all__ = ["Backend", "Upload"]

PROBE = re.compile(r"^\.probe-[0-9a-f]{32}$")
PREFIXES = ("artifacts/", "partial/", "runs/")


@dataclass(frozen=True)
class Upload:
    """A multipart upload to S3 that has not ended; the server keeps its parts, and no listing shows them."""

    path: str
    upload_id: str
    modified: datetime
    size: int


class Backend:
    """Below the store's own verbs. Raises StoreError."""

    def __init__(self, url: str):
        self._url = url
        place = urllib.parse.unquote(url.removeprefix("file://")) if url.startswith("file://") else url
        self._fs, root = open_filesystem(place)
        self._root = root.rstrip("/")
        self._s3 = "s3" in self._fs.protocol
        self._local = Path(root) if "file" in self._fs.protocol else None

    def exists(self) -> bool:
        """Whether there is a folder, on a local disk; elsewhere folders are there as soon as anything is in them."""
        return self._local is None or ask(self._fs, self._url, self._local.is_dir)

    def now(self, *, probing: bool = False) -> datetime:
        """Return the time by the clock that stamps the store's files: this machine's may be another.

        Of a disk, which may be another machine's, only a new file tells it: without `probing` nothing is written, and
        it is this machine's.
        """
        if self._s3:
            reply = self._call("list_objects_v2", MaxKeys=1, Prefix=self._key(""))
            return parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
        if probing and self._local is not None and self.exists():
            return ask(self._fs, self._url, self._stamp)
        return datetime.now(UTC)

    def _stamp(self) -> datetime:
        assert self._local is not None
        probe = self._local / f".probe-{uuid.uuid4().hex}"
        probe.touch()
        try:
            return datetime.fromtimestamp(probe.stat().st_mtime, UTC)
        finally:
            probe.unlink(missing_ok=True)

    def probes(self) -> Iterator[FileFact]:
        """Yield what `Store.check_writable` left behind when it was killed."""
        if self._s3:
            found = self._listed("list_objects_v2", "Contents", Prefix=self._key(".probe-"), Delimiter="/")
            facts = [FileFact(entry["Key"], entry["Size"], entry["LastModified"]) for entry in found]
        elif self._local is not None:
            facts = ask(self._fs, self._url, lambda: list(self._local_probes()))
        else:
            return
        for fact in facts:
            name = fact.path.removeprefix(self._key(""))
            if PROBE.match(name):
                yield FileFact(name, fact.size, fact.modified)

    def _local_probes(self) -> Iterator[FileFact]:
        assert self._local is not None
        for path in self._local.glob(".probe-*"):
            with suppress(FileNotFoundError):  # its writer is alive
                found = path.stat()
                yield FileFact(path.name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def uploads(self) -> Iterator[Upload]:
        """Yield the unfinished uploads of this store, on S3; no others of the bucket."""
        if not self._s3:
            return
        for entry in self._listed("list_multipart_uploads", "Uploads", Prefix=self._key("")):
            path = entry["Key"].removeprefix(self._key(""))
            if path.startswith(PREFIXES):
                parts = self._listed("list_parts", "Parts", Key=entry["Key"], UploadId=entry["UploadId"])
                yield Upload(path, entry["UploadId"], entry["Initiated"], sum(part["Size"] for part in parts))

    def abort(self, upload: Upload) -> None:
        """End an upload, and have the server drop its parts."""
        with suppress(FileNotFoundError):  # somebody else did, or it was completed
            self._call("abort_multipart_upload", Key=self._key(upload.path), UploadId=upload.upload_id)

    def prune(self, path: str) -> None:
        """Remove the folder that a deleted file left empty, on a local disk; elsewhere there are no folders."""
        if self._local is None:
            return
        for folder in list((self._local / path).parents)[: path.count("/")]:
            try:
                folder.rmdir()
            except OSError:  # not empty: somebody else lives there
                return

    def _key(self, path: str) -> str:
        if not self._s3:
            return path
        prefix = self._root.partition("/")[2]
        return f"{prefix}/{path}" if prefix else path

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        bucket = self._root.partition("/")[0]
        reply: dict[str, Any] = ask(self._fs, self._url, lambda: self._fs.call_s3(method, Bucket=bucket, **arguments))
        return reply

    def _listed(self, method: str, what: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Yield the entries of a listing, page by page."""
        markers = {
            "list_objects_v2": {"ContinuationToken": "NextContinuationToken"},
            "list_multipart_uploads": {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"},
            "list_parts": {"PartNumberMarker": "NextPartNumberMarker"},
        }[method]
        while True:
            try:
                reply = self._call(method, **arguments)
            except FileNotFoundError:  # an upload that has ended meanwhile
                return
            yield from reply.get(what, ())
            if not reply.get("IsTruncated"):
                return
            arguments |= {ours: reply[theirs] for ours, theirs in markers.items() if reply.get(theirs)}
