"""The model card: Mitchell et al., "Model Cards for Model Reporting", FAT* 2019, as Markdown."""

import html
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from btm_core.text import printable
from tasks.serving.facts import ModelFacts

if TYPE_CHECKING:
    from btm_core.checkpoints import CheckpointMetadata

__all__ = ["render_card"]

LISTED = 10


def render_card(facts: ModelFacts, checkpoint: "CheckpointMetadata", extras: Sequence[str] = ()) -> str:
    """Return the card of a model, with its checkpoint's class names and counts, and the exports that come with it."""
    from jinja2 import Environment, StrictUndefined

    template = (resources.files("tasks.serving") / "card.md.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters |= {"percent": _percent, "text": _text}
    counts = sorted(zip(checkpoint.train_counts, checkpoint.class_names, strict=True), key=lambda pair: -pair[0])
    text = environment.from_string(template).render(
        facts=facts,
        checkpoint=checkpoint,
        input=facts.input,
        most=counts[0],
        fewest=counts[-1],
        lowest=facts.lowest_classes[:LISTED],
        extras=tuple(extras),
    )
    return printable(text, lines=True)


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"


def _text(value: Any) -> str:
    """Return text that Markdown shows as it is: names of classes are anybody's."""
    escaped = html.escape(str(value), quote=False)
    for character in "\\`*_[]|#~":
        escaped = escaped.replace(character, f"\\{character}")
    return " ".join(escaped.split())
