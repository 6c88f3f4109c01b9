"""A decision of the gate in short: bounded however many classes there are, and of names that are anybody's."""

from typing import Any

import numpy as np
import pytest

from btm_core.decision import decision_html, decision_markdown
from btm_core.evidence import Evidence
from btm_core.side_by_side import Evaluated, pair_document, single_document

CLASSES = IMAGES = 40
NAMES = ("a|b", "<cedar>", *(f"tree {c}" for c in range(2, CLASSES)))
TRAIN = np.arange(200, 200 - 5 * CLASSES, -5)


def model(recall: np.ndarray) -> Evaluated:
    """A model that is right on the share `recall[c]` of the images of class c."""
    targets = np.repeat(np.arange(CLASSES), IMAGES)
    right = np.arange(len(targets)) % IMAGES < np.round(recall * IMAGES)[targets]
    predicted = np.where(right, targets, (targets + 1) % CLASSES)
    return Evaluated("version 2", Evidence("test", "a" * 64, NAMES, TRAIN, TRAIN, targets, predicted), "version")


RISING = np.arange(1, 1 + CLASSES) / IMAGES
CHECK = {"rule": "class_loss", "passed": False, "text": "class 'a|b' goes from 50.0 % to 5.0 %\n# no heading"}


def document(**more: Any) -> dict[str, Any]:
    return {
        "model": "trees",
        "version": "2",
        "decision": "rolled_back",
        "by": "ann",
        "at": "now",
        "champion_before": None,
        "run_id": "r1",
        "force": None,
        "rules": None,
        "checks": [CHECK],
        "reasons": [CHECK["text"]],
        "report": "s3://bucket/report.html",
        "comparison": None,
        "candidate": None,
        **more,
    }


def rows(text: str, title: str) -> list[str]:
    """Return the names of the table of that heading."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {title} |"))
    end = lines.index("", start)
    return [line.removeprefix("| ").partition(" |")[0] for line in lines[start + 2 : end]]


def test_of_a_first_model_the_lowest_classes_are_listed() -> None:
    text = decision_markdown(document(candidate=single_document(model(RISING))))
    assert rows(text, "Lowest classes") == [r"a\|b", r"\<cedar\>", *(f"tree {c}" for c in range(2, 10))]
    assert "| a\\|b | 200 | 40 | 2.5 |" in text
    assert "... and 30 more classes." in text
    assert text.endswith("Report, with every class: s3://bucket/report.html\n")
    assert "| H-mean | " in text and "there was no champion before" in text
    whole = decision_markdown(document(candidate=single_document(model(RISING))), shown=CLASSES)
    assert len(rows(whole, "Lowest classes")) == CLASSES and "more classes" not in whole


def test_of_two_models_those_that_lost_and_gained_most_are_listed() -> None:
    after = RISING.copy()
    after[:12], after[12:25] = 0, 1
    comparison = pair_document(model(RISING), model(after))
    text = decision_markdown(document(comparison=comparison, champion_before={"version": "1"}))
    assert rows(text, "Lost most") == [f"tree {c}" for c in range(11, 1, -1)] and "... and 2 more that lost." in text
    assert rows(text, "Gained most")[0] == "tree 12" and "... and 3 more that gained." in text
    assert "champion before: version 1." in text


def test_what_is_said_of_classes_is_no_markdown() -> None:
    text = decision_markdown(document(report=None))
    assert r"| class\_loss | **failed** | class 'a\|b' goes from 50.0 % to 5.0 % # no heading |" in text
    assert r"- class 'a\|b' goes from" in text and "\n#" not in text.removeprefix("#")
    assert "among the artifacts of the version's run in MLflow, promotion/" in text


@pytest.mark.parametrize("champion", [None, {"version": "1", "run_id": "r0"}])
def test_the_page_of_a_model_alone_has_every_class(champion: dict[str, Any] | None) -> None:
    page = decision_html(document(candidate=single_document(model(RISING)), champion_before=champion))
    assert page.count('<tr id="class-') == CLASSES and "<cedar>" not in page
    assert ("not comparable with the champion before" in page) == (champion is not None)
