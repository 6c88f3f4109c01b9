"""A section of the configuration: frozen, strict, and with an identity."""

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

__all__ = ["NOT_IDENTITY", "Probability", "Section", "canonical_digest"]

NOT_IDENTITY: JsonDict = {"identity": False}
"""`json_schema_extra` of fields that say where something is, not what it is: they are left out of every address."""
Probability = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the configuration: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        field_title_generator=lambda name, _: name,  # forms made from it show the keys that files and errors name
    )

    def identity(self) -> dict[str, Any]:
        """Return the JSON-ready values that determine a result: all but those marked as mere locations."""
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("identity") is False:
                continue
            value = getattr(self, name)
            values[name] = value.identity() if isinstance(value, Section) else value
        return values


def canonical_digest(value: Any) -> str:
    """Return the sha256 (hex) of the canonical JSON of `value`: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
