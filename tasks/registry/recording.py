"""A decision, written down where people look for it: MLflow's version and run, and the run's folder in the store."""

import json
import logging
from typing import Any

from btm_core.storage import Store
from btm_core.urls import without_credentials
from tasks.registry.promotion import Decision
from tasks.registry.registry import Registry

__all__ = ["record"]

log = logging.getLogger(__name__)


def record(registry: Registry, store: Store, decision: Decision) -> dict[str, Any]:
    """Write a decision down, with the table of every class, and return it as a document, with `report`, its page.

    It goes to MLflow, and to the run's folder in the store that the version is from. Where nothing was decided, nothing
    is written. The champion has moved by then, or has not: what cannot be written is told, and undoes nothing.
    """
    from btm_core.decision import decision_html, decision_markdown

    document = (
        decision.to_json() | {"mlflow": without_credentials(registry.uri)} | _classes(decision) | {"report": None}
    )
    if not decision.changed:
        return document
    # A version that BTM did not register has no run, and no folder in a store.
    store = store if decision.candidate.store in (None, store.url) else Store(str(decision.candidate.store))
    folder = decision.candidate.run_id
    stem = f"promotion-{decision.at:%Y%m%d-%H%M%S}-{registry.name}-{decision.candidate.number}"
    document["report"] = None if folder is None else store.locate("runs", folder, f"{stem}.html")
    texts = {
        f"{stem}.json": json.dumps(document, indent=1),
        f"{stem}.html": decision_html(document),
        f"{stem}.md": decision_markdown(document),
    }
    _in_mlflow(registry, decision, document, texts)
    try:
        for name, text in texts.items() if folder is not None else ():
            store.write(text.encode(), "runs", str(folder), name)
    except OSError as error:
        log.warning("the store did not take the decision, MLflow has it: %s", error)
    return document


def _classes(decision: Decision) -> dict[str, Any]:
    """Return the classes of both models side by side; those of the candidate alone if there is no fair comparison."""
    from btm_core.evidence import obstacles
    from btm_core.side_by_side import Evaluated, pair_document, single_document

    found: dict[str, Any] = {"comparison": None, "candidate": None}
    if decision.evidence is None:
        return found
    candidate, champion = decision.evidence
    now = Evaluated(f"version {decision.candidate.number}", candidate, "version")
    if decision.champion is None or champion is None or obstacles(champion, candidate):
        return found | {"candidate": single_document(now)}
    before = Evaluated(f"version {decision.champion.number}", champion, "version")
    return found | {"comparison": pair_document(before, now)}


def _in_mlflow(registry: Registry, decision: Decision, document: dict[str, Any], texts: dict[str, str]) -> None:
    tags = {
        "btm.decision": decision.decision,
        "btm.decision.reasons": "\n".join(decision.reasons),
        "btm.decision.by": decision.by,
        "btm.decision.at": document["at"],
        "btm.decision.against": "" if decision.champion is None else f"version {decision.champion.number}",
        "btm.decision.rules": json.dumps(document["rules"]),
        "btm.decision.report": document["report"] or "",
    }
    try:
        registry.tag(decision.candidate, tags)
        if decision.candidate.mlflow_run is not None:
            registry.log_texts(decision.candidate.mlflow_run, texts, "promotion")
    except Exception as error:
        log.warning("MLflow did not take the decision: %s", without_credentials(str(error)))
