"""Files on S3, by s3fs."""

import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from fsspec.asyn import sync

from btm_core.errors import StoreError, StoreUnavailableError
from btm_core.storage.files import Digest, Note, file_digest, nothing
from btm_core.storage.remote import RemoteFiles, in_order
from btm_core.storage.retrying import ConflictError, error_code

__all__ = ["S3Files"]

MOST_PARTS = 10_000  # S3's limit
MOST_DELETED = 1000  # by one request
ABORT_SECONDS = 10.0


class S3Files(RemoteFiles):
    """Files on S3, by s3fs; its own retries are off.

    Conditional writes: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    """

    _heeded: ClassVar[dict[tuple[Any, str], bool]] = {}

    def _address(self, path: str) -> dict[str, str]:
        bucket, key, _ = self.fs.split_path(self._at(path))
        return {"Bucket": bucket, "Key": key}

    def _ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """Make one request, again while its fault may pass. Raises ConflictError where a condition does not hold."""

        def ask() -> dict[str, Any]:
            try:
                reply: dict[str, Any] = self.fs.call_s3(method, **self._address(path), **arguments, **self.bound)
            except OSError as error:
                if error_code(error) in ("PreconditionFailed", "412"):
                    raise ConflictError(path) from None
                raise
            return reply

        return self._do(ask, path)

    def check_there(self) -> None:
        """Raise StoreError if there is no such bucket: some servers would make one that was only mistyped."""
        bucket, prefix, _ = self.fs.split_path(f"{self.root}/")  # the keys may be those of this prefix alone
        try:
            self._do(
                lambda: self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1, **self.bound), ""
            )
        except FileNotFoundError:
            raise StoreError(f"{self.url}: there is no bucket {bucket}: create it, or correct its name") from None

    @property
    def conditional(self) -> bool:  # type: ignore[override]
        """Whether the server heeds If-None-Match of a single PUT and of a multipart upload: tried once a process."""
        server = (self.fs, self._address("")["Bucket"])
        if server not in self._heeded:
            self._heeded[server] = self._heeds_conditions()
        return self._heeded[server]

    def _heeds_conditions(self) -> bool:
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self._ask("put_object", probe, Body=b"btm")
            for attempt in (self._put_small, self._put_parts):
                try:
                    attempt(probe, iter([b"BTM"]), nothing, exclusive=True)
                except ConflictError:
                    continue
                except StoreUnavailableError:
                    raise
                except StoreError:  # it does not even know the condition
                    return False
                return False
            return True
        finally:
            self.remove(probe)

    def read(self, path: str) -> tuple[bytes, str] | None:
        """Return a file's bytes and entity tag, None if there is no file."""

        async def get() -> tuple[bytes, str]:
            reply = await self.fs._call_s3("get_object", **self._address(path))  # cat_file keeps the tag to itself
            async with reply["Body"] as body:
                return await body.read(), reply["ETag"]

        try:
            found: tuple[bytes, str] = self._do(lambda: sync(self.fs.loop, get, **self.bound), path)
        except FileNotFoundError:
            return None
        return found

    def write_if(self, path: str, data: bytes, version: str | None) -> None:
        """Write a file if it has that version, or with None if there is none; raises ConflictError else."""
        if not self.conditional:
            return super().write_if(path, data, version)
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            self._ask("put_object", path, Body=data, **condition)
        except (ConflictError, FileNotFoundError):
            found = self.read(path)
            if found is None or found[0] != data:
                raise ConflictError(path) from None

    def put(self, source: Path, path: str, note: Note = nothing, *, exclusive: bool = False) -> Digest:
        """Copy a local file here, in parts if it is large; return its digest, computed on the way."""
        size = source.stat().st_size
        part = max(self.settings.part_bytes, -(-size // MOST_PARTS))
        upload = self._put_small if size <= part else self._put_parts
        with source.open("rb") as file:
            chunks = iter(lambda: file.read(part), b"") if size else iter([b""])
            try:
                return upload(path, chunks, note, exclusive=exclusive and self.conditional)
            except ConflictError:
                own = file_digest(source)
                self._expect(path, own)  # it may be our own upload, whose reply was lost
                return own

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all below, if it is there."""
        keys = [self._address(name)["Key"] for name in (path, *(fact.path for fact in self.walk(path)))]
        bucket = self._address(path)["Bucket"]
        for start in range(0, len(keys), MOST_DELETED):
            some = {"Objects": [{"Key": key} for key in keys[start : start + MOST_DELETED]], "Quiet": True}
            reply = self._do(
                lambda some=some: self.fs.call_s3("delete_objects", Bucket=bucket, Delete=some, **self.bound),  # type: ignore[misc]
                path,
            )
            for error in reply.get("Errors", ()):
                raise StoreError(f"{self.url}/{path} cannot be deleted: {error.get('Message')} ({error.get('Code')})")

    def _put_small(self, path: str, chunks: Iterator[bytes], note: Note, *, exclusive: bool) -> Digest:
        data = b"".join(chunks)
        self._ask("put_object", path, Body=data, **({"IfNoneMatch": "*"} if exclusive else {}))
        note(len(data))
        return hashlib.sha256(data).hexdigest(), len(data)

    def _put_parts(self, path: str, chunks: Iterator[bytes], note: Note, *, exclusive: bool) -> Digest:
        """Upload in parts beside each other, each tried again alone. Without a reply to the end, look what is there."""
        upload = {"UploadId": self._ask("create_multipart_upload", path)["UploadId"]}
        digest, size = hashlib.sha256(), 0
        pool = ThreadPoolExecutor(self.settings.parallel)

        def numbered() -> Iterator[tuple[int, bytes]]:
            nonlocal size
            for number, data in enumerate(chunks, 1):
                digest.update(data)
                size += len(data)
                yield number, data

        def send(item: tuple[int, bytes]) -> dict[str, Any]:
            number, data = item
            reply = self._ask("upload_part", path, PartNumber=number, Body=data, **upload)
            note(len(data))
            return {"PartNumber": number, "ETag": reply["ETag"]}

        try:
            parts = {"Parts": list(in_order(pool, send, numbered(), self.settings.parallel))}
            condition = {"IfNoneMatch": "*"} if exclusive else {}
            try:
                self._ask("complete_multipart_upload", path, MultipartUpload=parts, **upload, **condition)
            except FileNotFoundError:  # no such upload: it was completed, and the reply was lost
                self._expect(path, (digest.hexdigest(), size))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            with suppress(Exception):  # the server may be away; `btm store gc` finds what is left
                self.fs.call_s3("abort_multipart_upload", **self._address(path), **upload, timeout=ABORT_SECONDS)
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return digest.hexdigest(), size
