"""Promotion: judge a run's final model against the champion, move the champion or leave it, and write down why."""

import datetime
import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from btm_core.config import PromotionRules
from btm_core.errors import BTMError, ConfigError
from tasks.registry.ledger import CHALLENGER
from tasks.registry.registry import Registry, Version

if TYPE_CHECKING:
    from btm_core.evidence import Evidence
    from btm_core.promotion import Verdict

__all__ = ["Decision", "decide", "roll_back"]

log = logging.getLogger(__name__)

Again = Callable[[Version, "Evidence"], "Evidence | None"]
"""Evaluates a champion on the images of a candidate's evidence; None if that cannot be done."""


@dataclass(frozen=True)
class Decision:
    """What was decided of a candidate, on what grounds."""

    decision: Literal["promoted", "refused", "forced", "rolled_back"]
    reasons: list[str]
    model: str
    candidate: Version
    champion: Version | None
    """The champion before."""
    by: str
    at: datetime.datetime
    rules: PromotionRules | None = None
    verdict: "Verdict | None" = None
    force: str | None = None
    """The reason given with --force."""
    evidence: "tuple[Evidence, Evidence | None] | None" = None
    """Of the candidate, and of the champion, on the same images if that could be."""
    changed: bool = True
    """False if the candidate was the champion already: then nothing was decided."""

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready, without the evidence."""
        return {
            "decision": self.decision,
            "changed": self.changed,
            "reasons": self.reasons,
            "model": self.model,
            "version": self.candidate.number,
            "run_id": self.candidate.run_id,
            "champion_before": None if self.champion is None else self.champion.to_json(),
            "by": self.by,
            "at": self.at.isoformat(timespec="seconds"),
            "force": self.force,
            "rules": None if self.rules is None else self.rules.model_dump(mode="json"),
            "checks": [] if self.verdict is None else self.verdict.to_json(),
        }


def decide(
    registry: Registry,
    candidate: Version,
    evidence: "Evidence",
    rules: PromotionRules,
    *,
    by: str,
    again: Again,
    force: str | None = None,
) -> Decision:
    """Judge a candidate by `rules`, and make it the champion if it passes, or if there is a reason to `force` it.

    Of two candidates at once the second is judged against the first, if that one won. Raises ConfigError if there is
    no champion and no floor, or if the candidate itself is the previous champion of one that was deleted; TrackingError
    if MLflow cannot be used.
    """
    from btm_core.promotion import judge

    while True:
        standing = registry.standing()
        incumbent = standing.champion or standing.previous  # of a champion whose version was deleted
        if standing.champion is None and incumbent == candidate.number:
            _require_reason(registry, candidate, force)
            incumbent = None
        champion = None if incumbent is None else registry.version(incumbent)
        facts: dict[str, Any] = {
            "model": registry.name,
            "candidate": candidate,
            "champion": champion,
            "by": by,
            "rules": rules,
        }
        if standing.champion == candidate.number:
            reasons = [f"version {candidate.number} is the champion already"]
            return Decision("promoted", reasons, at=_now(), changed=False, **facts)
        before = None if champion is None else _comparable(registry, champion, evidence, again)
        facts |= {"evidence": (evidence, before), "force": force}
        verdict = _unheard(champion) if champion is not None and before is None else None
        if verdict is None and not (champion is None and rules.lowest_recall is None and force):
            verdict = judge(evidence, before, rules)
        facts["verdict"] = verdict
        passed = verdict is not None and verdict.promotes
        if not passed and force is None:
            assert verdict is not None
            registry.alias(CHALLENGER, candidate)
            return Decision("refused", verdict.reasons, at=_now(), **facts)
        if registry.move(standing, candidate.number, incumbent, by):
            if passed:
                assert verdict is not None
                return Decision("promoted", verdict.reasons, at=_now(), **facts)
            return Decision("forced", [f"forced: {force}", *(verdict.reasons if verdict else [])], at=_now(), **facts)
        log.info("another model became champion of %s meanwhile; judging against that one", registry.name)


def roll_back(registry: Registry, by: str, reason: str | None = None) -> Decision:
    """Make the previous champion the champion again; the one that was becomes previous.

    Raises ConfigError if there is none, or if somebody else moves the champion at the same time.
    """
    standing = registry.standing()
    if standing.previous is None:
        raise ConfigError(f"{registry.name!r} has no previous champion to go back to: only one was ever promoted")
    old = None if standing.champion is None else registry.version(standing.champion)
    back = registry.version(standing.previous)
    if not registry.move(standing, back.number, standing.champion, by):
        now = registry.standing().champion
        raise ConfigError(
            f"somebody else moved the champion of {registry.name!r} meanwhile: it is version {now} now, and nothing "
            f"was rolled back; btm promote --show --model {registry.name} tells what happened"
        )
    what = "a version that was deleted" if old is None else f"version {old.number}"
    reasons = [f"rolled back from {what}" + (f": {reason}" if reason else "")]
    return Decision("rolled_back", reasons, registry.name, back, old, by, _now(), evidence=_known(registry, back, old))


def _known(registry: Registry, now: Version, before: Version | None) -> "tuple[Evidence, Evidence | None] | None":
    """Return what two versions predicted, as far as that can be had: for the record alone."""
    try:
        found = registry.evidence(now)
        return None if found is None else (found, None if before is None else registry.evidence(before))
    except BTMError as error:
        log.warning("the decision is written down without the recall of the classes: %s", error)
        return None


def _require_reason(registry: Registry, candidate: Version, force: str | None) -> None:
    """Refuse to judge a model against itself."""
    if force is None:
        raise ConfigError(
            f"version {candidate.number} of {registry.name!r} is this very model, and was the champion before the one "
            "whose version was deleted, so there is no other to judge it against; make it the champion again: btm "
            f"promote --rollback --model {shlex.quote(registry.name)}"
        )


def _comparable(registry: Registry, champion: Version, evidence: "Evidence", again: Again) -> "Evidence | None":
    """Return the champion's evidence on the candidate's images, by evaluating it again if it was on others."""
    found = registry.evidence(champion)
    if found is None or found.split_hash == evidence.split_hash or found.class_names != evidence.class_names:
        return found
    log.info("the champion, version %s, was evaluated on other images: evaluating it on these", champion.number)
    return again(champion, evidence) or found


def _unheard(champion: Version) -> "Verdict":
    from btm_core.promotion import Check, Verdict

    text = (
        f"the champion, version {champion.number}, holds no evidence of what it predicts: it was registered by other "
    )
    text += "means, or its files are gone"
    return Verdict((Check("comparable", False, text),))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
