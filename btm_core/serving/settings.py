"""What whoever serves a model decides: by the environment of the serving process, never by a request."""

import os

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from btm_core.errors import ConfigError

__all__ = ["ServingSettings", "serving_settings"]

PREFIX = "BTM_SERVE_"


class ServingSettings(BaseModel):
    """Settings from the environment (prefix BTM_SERVE_). pydantic-settings would be one requirement more."""

    model_config = ConfigDict(frozen=True)

    urls: bool = Field(False, description="take http and https URLs for images; the server then fetches what they name")
    url_private: bool = Field(
        False, description="let URLs lead to private and loopback addresses: the network that the server is in"
    )
    url_megabytes: float = Field(20.0, gt=0, le=512, description="largest image that is fetched")
    url_seconds: float = Field(10.0, gt=0, description="longest time to fetch an image, redirects included")


def serving_settings() -> ServingSettings:
    """Return the settings of the environment. Raises ConfigError that names all faults."""
    variables = {name: f"{PREFIX}{name.upper()}" for name in ServingSettings.model_fields}
    given = {name: os.environ[variable] for name, variable in variables.items() if variable in os.environ}
    try:
        return ServingSettings.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(f"{variables[str(p['loc'][0])]}: {p['msg']}, found {p['input']!r}" for p in error.errors())
        raise ConfigError(f"serving settings: {problems}") from None
