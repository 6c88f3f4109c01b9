"""The parameters of a flow as a form: the JSON schema of a flow's signature, as far as Prefect's UI can draw it."""

from typing import Any

from prefect.utilities.callables import parameter_schema

__all__ = ["form_of"]


def form_of(flow: Any) -> dict[str, Any]:
    """Return the parameter schema of a flow, with choices that the form would leave as raw JSON drawn as tabs."""
    schema: dict[str, Any] = _drawn(parameter_schema(flow).model_dump())
    return schema


def _drawn(part: Any) -> Any:
    """The form draws `anyOf`, not `oneOf` with a discriminator; a tab is named by its title, and sends no defaults."""
    if isinstance(part, list):
        return [_drawn(item) for item in part]
    if not isinstance(part, dict):
        return part
    drawn = {key: _drawn(value) for key, value in part.items() if key != "discriminator"}
    if "discriminator" in part:
        drawn["anyOf"] = drawn.pop("oneOf")
    if "const" in part:
        drawn["enum"] = [drawn.pop("const")]
    constant = part.get("properties", {}).get("name", {}).get("const")
    if constant:
        drawn |= {"title": constant, "required": ["name"]}
    return drawn
