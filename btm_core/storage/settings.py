"""How stores and remote data are reached: settings of the environment, and the one way to open a URL."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import fsspec
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from btm_core.errors import ConfigError, StoreError
from btm_core.urls import refuse_credentials, without_credentials

__all__ = ["StorageSettings", "open_filesystem", "storage_settings"]


class StorageSettings(BaseSettings):
    """Settings from the environment (prefix BTM_STORE_). Secrets are none of them: those are for AWS's own variables,
    profiles and roles, which apply as they are wherever nothing is set here.
    """

    model_config = SettingsConfigDict(env_prefix="BTM_STORE_", frozen=True, extra="ignore")

    endpoint: str | None = Field(None, description="S3 server; default: AWS_ENDPOINT_URL_S3, or AWS itself")
    region: str | None = Field(None, description="S3 region; default: AWS_REGION, or the profile's")
    profile: str | None = Field(None, description="profile of ~/.aws; default: AWS_PROFILE")
    tls_verify: bool | Path = Field(True, description="check the server's certificate; or a file of CA certificates")
    checksums: Literal["when_supported", "when_required"] | None = Field(
        None,
        description="S3's own checksums; for older servers when_required; default: AWS's variables",
    )
    addressing: Literal["auto", "path", "virtual"] = Field("auto", description="S3 buckets as path or as host name")
    deadline_seconds: float = Field(300.0, gt=0, description="an operation that fails is tried again for so long")
    connect_timeout_seconds: float = Field(10.0, gt=0, description="longest wait for a connection")
    read_timeout_seconds: float = Field(30.0, gt=0, description="longest silence of a server before it is asked again")
    part_megabytes: int = Field(8, ge=5, le=512, description="size of the parts that large files travel in")
    parallel: int = Field(4, ge=1, le=64, description="parts of a file that travel at a time; each is held in memory")
    cache: Path | None = Field(None, description="folder of files fetched; default: $XDG_CACHE_HOME or ~/.cache, /btm")
    cache_gb: float = Field(20.0, ge=0, description="size of that folder; 0: nothing is kept")

    @property
    def part_bytes(self) -> int:
        """Size of a part, in bytes."""
        return self.part_megabytes * 2**20


def storage_settings() -> StorageSettings:
    """Return the settings of the environment. Raises ConfigError that names all faults."""
    try:
        return StorageSettings()
    except ValidationError as error:
        problems = "; ".join(
            f"BTM_STORE_{str(p['loc'][0]).upper()}: {p['msg']}, found {p['input']!r}" for p in error.errors()
        )
        raise ConfigError(f"store settings: {problems}") from None


def open_filesystem(url: str, settings: StorageSettings | None = None) -> tuple[Any, str]:
    """Return the fsspec file system of a path or URL, and the path within it. Raises StoreError if there is none.

    Instances are shared: one connection pool a process.
    """
    options = _s3_options(settings or storage_settings()) if url.startswith(("s3://", "s3a://")) else {}
    if url.startswith("file://"):
        url = unquote(url.removeprefix("file://"))  # a URL writes a space as %20, a folder does not
    try:
        refuse_credentials(url)
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError, OSError) as error:
        raise StoreError(
            f"{without_credentials(url)!r} is not usable: {error}; use a path, file:///folder or s3://bucket/prefix"
        ) from None
    if options:
        fs.retries = 1  # `btm_core.storage.retrying` is the one that tries again
    return fs, str(path)


@lru_cache
def _s3_options(settings: StorageSettings) -> dict[str, Any]:
    config: dict[str, Any] = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": settings.connect_timeout_seconds,
        "read_timeout": settings.read_timeout_seconds,
        "max_pool_connections": 64,
        "s3": {"addressing_style": settings.addressing},
    }
    if settings.checksums is not None:
        config["request_checksum_calculation"] = config["response_checksum_validation"] = settings.checksums
    client: dict[str, Any] = {}
    if settings.region is not None:
        client["region_name"] = settings.region
    if settings.tls_verify is not True:
        client["verify"] = settings.tls_verify if settings.tls_verify is False else str(settings.tls_verify)
    options: dict[str, Any] = {"config_kwargs": config, "client_kwargs": client, "use_listings_cache": False}
    if settings.endpoint is not None:
        options["endpoint_url"] = settings.endpoint
    if settings.profile is not None:
        options["profile"] = settings.profile
    return options
