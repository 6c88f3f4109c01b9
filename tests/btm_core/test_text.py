import pytest

from btm_core.comparison import Row, comparison, comparison_markdown
from btm_core.text import did_you_mean, printable
from tasks.tracking import run_note

MEAN = "nine \x1b[31mred\u202e\u2066\x07\x9b"
FIGURES = {
    **dict.fromkeys(("h_mean", "g_mean", "lowest_recall", "accuracy", "many", "medium", "few"), 0.5),
    "zero_recall_classes": 0,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wilson's Warbler, 丹顶鹤", "Wilson's Warbler, 丹顶鹤"),
        (MEAN, "nine ?[31mred????"),
        ("a\nb\r\x85\u2028c\td", "a?b???c d"),
        ("\udcff\x00\x7f", "???"),
        ("丹\u3000顶\u00a0x", "丹 顶 x"),
        ("क्\u200dष", "क्\u200dष"),  # a joiner that Hindi is written with
    ],
)
def test_names_are_harmless(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(text, lines=True) == (expected.replace("?", "\n", 1) if "\n" in text else expected)


def test_markdown_is_harmless() -> None:
    row = Row({"model": MEAN}, [{**FIGURES, "split": "test", "split_hash": "a" * 64}])
    document = comparison(MEAN, [row], split="test", split_hash="a" * 64, warnings=[MEAN])
    note = run_note([{**FIGURES, "name": MEAN}], {"Store": f"/{MEAN}"}, MEAN)
    for text, times in ((comparison_markdown(document), 3), (note, 3)):
        assert text.count("nine ?[31mred????") == times and len(text.splitlines()) > 4
        assert all(letter == "\n" or letter.isprintable() for letter in text)


def test_the_nearest_is_told_if_any_is_near() -> None:
    assert did_you_mean("rey", ["local", "ray"]) == "; did you mean 'ray'?"
    assert did_you_mean("foo", ["local", "ray"]) == ""
