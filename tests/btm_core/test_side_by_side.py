"""Models side by side, on four classes of which every number can be worked out by hand."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from btm_core.errors import DataError
from btm_core.evidence import Evidence
from btm_core.pages.charts import scatter_chart
from btm_core.pages.pairs import pair_html, side_by_side_html
from btm_core.side_by_side import (
    Evaluated,
    pair_document,
    pair_markdown,
    side_by_side,
)

TRAIN = np.array([200, 50, 10, 5])
TEST = 20
NAMES = ("ash", "birch|x", "<cedar>", "douglas fir")


def predicted(*right: int) -> Evidence:
    """Evidence of a model that is right on the first `right[c]` of 20 images of class c."""
    targets = np.repeat(np.arange(4), TEST)
    correct = np.arange(4 * TEST) % TEST < np.asarray(right)[targets]
    return Evidence("test", "a" * 64, NAMES, TRAIN, TRAIN, targets, np.where(correct, targets, (targets + 1) % 4))


A, B = (
    Evaluated("before", predicted(20, 10, 0, 8), "run", "2026"),
    Evaluated("after", predicted(19, 0, 10, 8), "version", "m/1"),
)


def test_a_pair_is_what_it_was_worked_out_to_be() -> None:
    document = pair_document(A, B)
    assert json.loads(json.dumps(document)) == document
    a, b = document["a"], document["b"]
    assert (a["spec"], a["kind"], a["name"], a["split"], a["split_hash"]) == ("2026", "run", "before", "test", "a" * 64)
    assert a["h_mean"] == pytest.approx(4 / (1 + 2 + 1000 + 2.5))
    assert b["g_mean"] == pytest.approx((0.95 * 0.001 * 0.5 * 0.4) ** 0.25)
    assert (a["accuracy"], b["accuracy"], a["zero_recall_classes"]) == (38 / 80, 37 / 80, 1)
    assert (b["many"], b["medium"], b["few"]) == pytest.approx((0.95, 0.0, 0.45))
    rows = document["per_class"]
    assert [row["class"] for row in rows] == [0, 1, 2, 3]
    assert [row["group"] for row in rows] == ["many", "medium", "few", "few"]
    assert [(row["train_images"], row["test_images"]) for row in rows] == [(200, 20), (50, 20), (10, 20), (5, 20)]
    assert [row["difference"] for row in rows] == pytest.approx([-0.05, -0.5, 0.5, 0.0])
    assert all(row["difference"] == row["b"] - row["a"] for row in rows)
    assert rows[0]["low"] < rows[0]["difference"] and rows[0]["high"] == 0  # one image of 20 proves nothing
    assert rows[1]["high"] < 0 and (rows[3]["low"], rows[3]["high"]) == (0, 0)
    summary = document["summary"]
    for name in ("h_mean", "g_mean", "lowest_recall", "accuracy", "mean_recall", "many", "medium", "few"):
        assert (summary[name]["a"], summary[name]["b"]) == (a[name], b[name])
        assert summary[name]["difference"] == pytest.approx(b[name] - a[name], abs=1e-12)
        assert summary[name]["low"] <= summary[name]["high"]
    assert summary["worst_mean"]["a"] == summary["worst_mean"]["b"] == 0
    assert [(row["class"], row["clear"]) for row in summary["worse"]] == [(1, True), (0, False)]
    assert [(row["class"], row["clear"]) for row in summary["better"]] == [(2, True)]
    assert [row["name"] for row in summary["new_zero_recall_classes"]] == ["birch|x"]
    assert [row["name"] for row in summary["resolved_zero_recall_classes"]] == ["<cedar>"]


def test_three_images_that_are_all_lost_are_not_clear() -> None:
    """Their interval has no width, but as many go one way by chance every fourth time; six once in 32 times."""
    for images, clear in ((3, False), (5, False), (6, True)):
        targets = np.repeat(np.arange(2), images)
        facts = ("test", "a" * 64, ("a", "b"), np.array([9, 9]), np.array([9, 9]), targets)
        lost = Evaluated("lost", Evidence(*facts, np.zeros_like(targets)))
        document = pair_document(Evaluated("right", Evidence(*facts, targets)), lost)
        row = document["per_class"][1]
        assert (row["difference"], row["low"], row["high"], row["clear"]) == (-1, -1, -1, clear)
        assert [found["clear"] for found in document["summary"]["worse"]] == [clear]
        assert f"lower recall in 1 ({int(clear)} clearly)" in pair_markdown(document)
        page = pair_html(document)
        marked = re.findall(
            r'<tr[^>]*?(?: class="(.*?)")?><th scope="row" class="name">(?:<a[^>]*>)?b<.*?>-100.0<', page
        )
        assert marked == ["clear" * clear] * 2  # of those that got worse, and of all
        data = json.loads(page.split('<script type="application/json">')[1].split("</script>")[0])
        assert [shown[10] for shown in data["rows"]] == [0, int(clear)]


def test_the_other_way_round_every_sign_turns() -> None:
    there, back = pair_document(A, B), pair_document(B, A)
    assert [row["difference"] for row in back["per_class"]] == [-row["difference"] for row in there["per_class"]]
    assert [row["class"] for row in back["summary"]["worse"]] == [row["class"] for row in there["summary"]["better"]]
    assert back["summary"]["accuracy"]["difference"] == -there["summary"]["accuracy"]["difference"]


def test_a_model_beside_itself_did_not_change() -> None:
    document = pair_document(A, A)
    summary = document["summary"]
    for key in ("worse", "better", "new_zero_recall_classes", "resolved_zero_recall_classes"):
        assert summary[key] == []
    assert all(row["low"] == row["difference"] == row["high"] == 0 for row in document["per_class"])
    assert "None." in pair_html(document) and "Lost most" not in pair_markdown(document)


def test_a_group_without_classes_is_no_figure() -> None:
    counts = np.array([200, 300, 400, 5])
    one, two = (Evaluated("x", replace(m.evidence, train_counts=counts, group_counts=counts)) for m in (A, B))
    document = pair_document(one, two)
    assert document["a"]["medium"] is None and "medium" not in document["summary"]
    assert "Medium" not in pair_markdown(document)


def test_groups_are_those_of_the_reference() -> None:
    counts = np.array([200, 300, 400, 500])
    other = Evaluated("x", replace(B.evidence, train_counts=counts, group_counts=counts))
    document = pair_document(A, other)
    assert not document["same_training_counts"]
    assert document["b"]["few"] == document["summary"]["few"]["b"] == pytest.approx(0.45)
    assert "trained on other numbers" in " ".join(pair_html(document).split())
    assert "trained on other numbers" not in " ".join(pair_html(pair_document(A, B)).split())


def test_further_models_are_compared_with_the_first() -> None:
    third = Evaluated("third", predicted(20, 20, 20, 20))
    document = side_by_side([A, B, third])
    assert {key: document[key] for key in ("a", "b", "per_class", "summary")} == {
        key: value for key, value in pair_document(A, B).items() if key != "same_training_counts"
    }
    [other] = document["others"]
    assert (other["a"]["name"], other["b"]["name"]) == ("before", "third")
    assert other == pair_document(A, third)
    page = side_by_side_html(document)
    assert 'id="B">B against A</h2>' in page and 'id="C">C against A</h2>' in page
    assert page.count("<svg") == 8 and "http:" not in page and "https:" not in page
    assert {f'id="{letter}-class-{c}"' in page for letter in "BC" for c in range(4)} == {True}


def test_models_of_other_images_are_refused_by_what_the_user_typed() -> None:
    other = Evaluated("other", replace(B.evidence, split_hash="b" * 64), spec="m/2")
    with pytest.raises(DataError, match=r"2026 and m/2 cannot be compared: .*other images"):
        side_by_side([A, B, other])
    with pytest.raises(DataError, match="2026 and m/2"):
        pair_document(A, other)


def test_the_texts_tell_the_same() -> None:
    document = pair_document(A, B)
    page, text = pair_html(document), pair_markdown(document)
    assert "<cedar>" not in page and "&lt;cedar&gt;" in page  # names are text, not markup
    row = document["per_class"][1]
    cells = f"50.0 | 0.0 | -50.0 | {100 * row['low']:+.1f} to {100 * row['high']:+.1f} |"
    assert rf"| birch\|x | 50 | 20 | {cells}" in text
    assert "| Zero-recall classes | 1 | 1 | 0 | |" in text
    assert "B has a lower recall in 2 (1 clearly), a higher one in 1 (1 clearly), the same in 1." in text
    assert r"1 fell to zero: birch\|x." in text and r"1 rose from zero: \<cedar\>." in text
    assert "1 more that lost" in pair_markdown(document, shown=1)
    assert text.index(r"| birch\|x |") < text.index("| ash |")


def test_a_page_of_very_many_classes_shows_the_worst() -> None:
    random = np.random.default_rng(0)
    targets = np.repeat(np.arange(1000), 3)
    first, second = (np.where(random.random(3000) < share, targets, 0) for share in (0.5, 0.8))
    counts = np.arange(1000, 0, -1)
    names = tuple(f"c{number}" for number in range(1000))
    one, two = (Evidence("test", "a" * 64, names, counts, counts, targets, p) for p in (first, second))
    document = pair_document(Evaluated("x", one), Evaluated("y", two))
    page = pair_html(document)
    lost = len(document["summary"]["worse"])
    assert lost > 50 and f"The 50 that lost most; {lost - 50} more lost" in page
    assert "No interval of H-mean, Worst 5 % is shown" in page and "<td>too few images</td>" in page
    assert "No interval of" not in pair_html(pair_document(A, B))
    assert "too few images" in pair_markdown(document) and "too few images" not in pair_markdown(pair_document(A, B))
    assert page.count('<th scope="row" class="name">') == 100
    data = json.loads(page.split('<script type="application/json">')[1].split("</script>")[0])
    assert len(data["rows"]) == 1000  # all of them are there to search, though 50 stand there
    row, known = data["rows"][7], document["per_class"][7]
    assert row[:5] == [7, "c7", "many", 993, 3]
    assert row[5:10] == [round(100 * known[key], 1) for key in ("a", "b", "difference", "low", "high")]


GROUPS = {"many": TRAIN > 100, "medium": TRAIN == 50, "few": TRAIN < 20}


def drawn(names: tuple[str, ...]) -> str:
    a, b = (model.evidence.report.recall for model in (A, B))
    return str(scatter_chart(a, b, np.full(4, TEST), GROUPS, names, "label"))


def test_points_are_where_the_classes_are() -> None:
    chart = drawn(NAMES)
    circle, square = (re.search(rf'<{shape} class="{group}" ([^/]*)/>', chart) for shape, group in MARKS)
    assert circle is not None and square is not None
    cx, cy = (float(value) for value in re.findall(r'c[xy]="([\d.]+)"', circle[1]))
    assert (cx - 46) / 362 == pytest.approx(1, abs=0.05) and (378 - cy) / 368 == pytest.approx(0.95, abs=0.05)
    assert chart == drawn(NAMES)  # though they are scattered
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", chart)
    assert texts[-3:] == ["birch|x", "&lt;cedar&gt;", "ash"]  # the most changed first; the fourth did not change


MARKS = (("circle", "many"), ("rect", "medium"))


def test_names_are_text_in_a_chart_and_short() -> None:
    chart = drawn(("$price$", "b" * 60, "<script>alert(1)</script>", "d"))
    assert "<script" not in chart and "&lt;script&gt;alert(1)&lt;/sc" in chart
    assert "b" * 23 + "…</text>" in chart
