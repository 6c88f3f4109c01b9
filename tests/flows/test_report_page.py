"""Pages about models in a real browser: they look after themselves, work by keyboard, and bear 8,142 classes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from browser import accessibility_faults, chromium, errors_of, needs_chromium
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from btm_core.comparison import Row, comparison, comparison_html
from btm_core.config import load_experiment
from btm_core.decision import decision_html
from btm_core.evidence import Evidence
from btm_core.metrics import recall_report
from btm_core.pages.charts import interpolation_chart
from btm_core.pages.pairs import side_by_side_html
from btm_core.pages.report import render_html
from btm_core.report import ModelResult, build_report
from btm_core.side_by_side import FIGURES, Evaluated, side_by_side, single_document

pytestmark = needs_chromium

Undisturbed = tuple[Path, dict[str, Any]]
CLASSES = 8142
HOSTILE = ("</script><script>window.hacked=1</script>", "<img src=x onerror=window.hacked=1>", '=1+1,"b"', "Ünî «é»")


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with chromium() as driver:
        yield driver


def arrays(classes: int, images: int) -> dict[str, Any]:
    """Return what a run of so many classes gives its report, with names that are markup."""
    random = np.random.default_rng(0)
    counts = np.maximum(500 * np.exp(-5.3 * np.arange(classes) / classes), 2).astype(int)
    targets = np.repeat(np.arange(classes), images)
    models = []
    for name, stage, skill in (("stage 1", "pretrain", 0.4), ("soup", "merge", 0.45), ("final", "post_train", 0.5)):
        predicted = np.where(random.random(len(targets)) < skill, targets, (targets + 1) % classes)
        sure = random.random(len(targets)).astype(np.float32)
        figures = recall_report(targets, predicted, counts)
        models.append(ModelResult(name, stage, "", "", figures, predicted, "test", "ab" * 32, sure))
    run = {
        "run_id": "r1",
        "name": "many",
        "created": "now",
        "data": {"profile": "long", "content": "", "splits": {"test": {"images": len(targets)}}},
        "short_classes": 0,
        "subset_images": 10,
        "published": None,
        "lineage": [],
        "versions": {},
        "host": {},
        "validation": [],
        "lost_ingredients": [],
    }
    names = [*HOSTILE, *(f"species {c}" for c in range(len(HOSTILE), classes))]
    experiment = load_experiment("digits-lt").model_dump(mode="json")
    return {
        "run": run,
        "experiment": experiment,
        "class_names": names,
        "train_counts": counts,
        "targets": targets,
        "models": models,
    }


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The page of a run of 8,142 classes, and its document."""
    path = tmp_path_factory.mktemp("many") / "report.html"
    report = build_report(**arrays(CLASSES, 3))
    path.write_text(render_html(report), encoding="utf-8")
    return path, report


def faults(driver: WebDriver) -> list[str]:
    """Return what is wrong with the page that is open: its console, its requests, its accessibility."""
    requests = driver.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    )
    return [*errors_of(driver), *requests, *accessibility_faults(driver)]


def test_no_interval_is_shown_that_does_not_hold_its_estimate(many: tuple[Path, dict[str, Any]]) -> None:
    """Of three images a class, the bootstrap of H-mean and G-mean is biased."""
    path, report = many
    page = path.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    row = report["comparison"]["summary"]["h_mean"]
    assert not row["low"] <= row["difference"] <= row["high"]
    assert "BTM raised the H-mean from 0.4 to 0.8 % (+0.4 points, no interval: too few test images a class)" in page
    assert "raised accuracy from 39.4 to 50.4 % (+11.0, 95 % interval +10.3 to +11.7)" in page
    assert "too few test images a class to tell change from chance in the H-mean" in page
    assert "explain what happened to the H-mean" not in page
    wrong = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
    figures = page[page.index('id="figures"') : page.index('id="classes"')]
    assert wrong not in figures and figures.count("<td>too few images</td>") == 2
    assert "<title>H-mean: +0.4 (no interval: too few images)</title><circle" in figures  # a point, and no bar
    assert figures.count('class="interval') == len(FIGURES) - 2


def test_of_three_images_a_class_none_changed_clearly(many: tuple[Path, dict[str, Any]]) -> None:
    path, report = many
    assert any(low > 0 for low in report["classes"]["low"]) and not any(report["classes"]["clear"])
    page = path.read_text(encoding="utf-8")
    assert page.count("(0 clearly)") == 2
    assert 'class="better"' not in page[page.index('id="classes"') : page.index('id="models"')]


def test_few_classes_have_their_names_on_the_axis() -> None:
    pages = {classes: render_html(build_report(**arrays(classes, 10))) for classes in (30, 31)}
    chart = {classes: page[page.index('id="recall"') :].split("</svg>")[0] for classes, page in pages.items()}
    assert [f">species {c}</text>" in chart[30] for c in range(4, 30)] == [True] * 26
    assert "&lt;/script&gt;&lt;script&gt;…</text>" in chart[30]
    assert ">species 7</text>" not in chart[31]
    assert '<a href="#all">All classes</a> has the names' in pages[31]
    assert all("Point at" not in page for page in pages.values())


def test_the_page_says_how_many_bins_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import btm_core.pages.report

    given = build_report(**arrays(5, 20))
    assert f"{len(given['calibration']['final']['overall']['images'])} bins of equal width" in render_html(given)
    monkeypatch.setattr(btm_core.pages.report, "BINS", 7)
    assert "7 bins of equal width" in render_html(given)


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (False, 390)])
def test_the_page_of_a_run_is_whole_in_light_and_dark(undisturbed: Undisturbed, dark: bool, width: int) -> None:
    with chromium(dark=dark, width=width) as driver:
        driver.get(undisturbed[1]["report"])
        driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
        assert faults(driver) == []
        pictures = driver.execute_script("return [...document.images].map(i => [i.naturalWidth, i.alt])")
        assert len(pictures) > 20 and all(size == 8 and text for size, text in pictures)
        assert driver.execute_script("return document.documentElement.scrollWidth") == width  # tables scroll inside
        ink = driver.execute_script("return getComputedStyle(document.querySelector('svg text')).fill")
        assert (int(ink.removeprefix("rgb(").split(",")[0]) > 128) == dark  # charts take the page's colours


def test_the_page_says_how_to_run_it_again(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """What it offers to save is a configuration, and that of the run."""
    import base64
    import re

    page = Path(undisturbed[1]["report"].removeprefix("file://"))
    link = re.search(r'download="([^"]+)" href="data:text/yaml;base64,([^"]+)"', page.read_text())
    assert link is not None and link[1] == "digits-lt.yaml"
    (tmp_path / link[1]).write_bytes(base64.b64decode(link[2]))
    again = load_experiment(str(tmp_path / link[1])).model_dump(mode="json")
    assert again == json.loads(page.with_suffix(".json").read_text())["experiment"]
    assert yaml.safe_load((tmp_path / link[1]).read_text())["finetune"]["epochs"] == 4


class Table:
    """The table of classes of the page that is open."""

    def __init__(self, driver: WebDriver):
        self.driver = driver

    def part(self, name: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, f"[data-part={name}]")

    def head(self, key: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, f".class-table th[data-key={key}]")

    @property
    def status(self) -> str:
        return self.part("status").text

    def column(self, number: int) -> list[str]:
        """Return the texts of a column that are shown; the first is the name."""
        script = (
            "return [...document.querySelectorAll('.class-table tbody tr')].map(r => r.cells[arguments[0]].textContent)"
        )
        found: list[str] = self.driver.execute_script(script, number)
        return found


@pytest.fixture
def table(browser: WebDriver, many: tuple[Path, dict[str, Any]]) -> Table:
    browser.get("about:blank")  # else an address with another #class is no new page
    browser.get(many[0].as_uri())
    return Table(browser)


def test_of_8142_classes_a_page_at_a_time_is_there(table: Table, many: tuple[Path, dict[str, Any]]) -> None:
    path, report = many
    assert path.stat().st_size < 2_000_000
    assert table.driver.execute_script("return document.querySelectorAll('*').length") < 3000
    assert table.status == "1 to 50 of 8,142 classes" and len(table.column(0)) == 50
    lowest = sorted(range(CLASSES), key=lambda c: (report["classes"]["recall"]["final"][c], c))
    assert table.column(0) == [report["classes"]["name"][c] for c in lowest[:50]]
    table.part("next").click()
    assert table.status.startswith("51 to 100") and table.column(0)[0] == report["classes"]["name"][lowest[50]]
    table.part("previous").click()
    table.part("previous").click()  # there is none before the first
    assert table.status.startswith("1 to 50")
    assert faults(table.driver) == []


def test_classes_are_searched_sorted_and_filtered(table: Table, many: tuple[Path, dict[str, Any]]) -> None:
    classes = many[1]["classes"]
    table.part("search").send_keys("SPECIES 81")
    assert table.status == f"1 to 50 of {sum('species 81' in name for name in classes['name'])} that match, of 8,142"
    table.part("search").send_keys("41")
    assert table.column(0) == ["species 8141"] and table.column(2) == [f"{classes['train_images'][8141]:,}"]
    table.part("search").send_keys("x")
    assert table.status == "No class of 8,142 matches." and table.column(0) == []
    table.part("search").clear()
    table.part("search").send_keys(" ")
    Select(table.part("group")).select_by_visible_text("medium")
    assert set(table.column(1)) == {"medium"} and f"{classes['group'].count('medium'):,} that match" in table.status
    Select(table.part("change")).select_by_visible_text("worse")
    assert len(table.column(6)) == 50 and all(text.startswith("-") for text in table.column(6))
    Select(table.part("change")).select_by_visible_text("clearly worse")
    assert table.column(6) == []  # three images a class tell nothing
    Select(table.part("group")).select_by_visible_text("all")
    Select(table.part("change")).select_by_visible_text("all")
    table.head("train").find_element(By.TAG_NAME, "button").click()
    assert table.head("train").get_attribute("aria-sort") == "ascending"
    assert table.head("after").get_attribute("aria-sort") is None
    assert table.column(2) == ["2"] * 50
    table.head("train").find_element(By.TAG_NAME, "button").click()
    assert table.head("train").get_attribute("aria-sort") == "descending" and table.column(2)[0] == "500"


def test_classes_that_changed_clearly_are_those_of_the_document(browser: WebDriver, tmp_path: Path) -> None:
    report = build_report(**arrays(60, 30))
    (tmp_path / "report.html").write_text(render_html(report), encoding="utf-8")
    browser.get((tmp_path / "report.html").as_uri())
    found, better = Table(browser), report["comparison"]["summary"]["better"]
    Select(found.part("change")).select_by_visible_text("clearly better")
    clear = {row["name"] for row in better if row["clear"]}
    assert 0 < len(clear) < len(better) and set(found.column(0)) == clear
    coloured = "return [...document.querySelectorAll('.class-table td.better')].length"
    assert browser.execute_script(coloured) == len(clear)


def test_the_page_links_comparisons_and_draws_the_newest_curves() -> None:
    given = arrays(5, 20)
    curve = {"lambda": [0, 0.5, 1], "h_mean": [0.2, 0.4, 0.3], "g_mean": [0.3, 0.5, 0.4], "level": None}
    links = [
        {"run_id": f"r{n}", "title": "<b>Merging", "created": f"day {n}", "page": f"../r{n}/comparison.html",
         "same_stage_1": n < 3, "curves": {"A to B": curve} if n == 2 else {}}
        for n in (3, 2, 1)
    ]  # fmt: skip
    alone, page = (render_html(build_report(**given) | more) for more in ({}, {"elsewhere": links}))
    assert 'id="elsewhere"' not in alone and "btm ablate interpolation" in alone
    section = page[page.index('id="elsewhere"') : page.index('id="calibration"')]
    assert [section.index(f'<a href="../r{n}/comparison.html">&lt;b&gt;Merging</a>, day {n}') for n in (3, 2, 1)]
    assert section.count("from the same stage 1") == 2 and section.count("<svg") == 2


def test_all_of_it_works_by_keyboard(table: Table) -> None:
    driver = table.driver

    def press(*keys: str) -> WebElement:
        driver.switch_to.active_element.send_keys(*keys)
        return driver.switch_to.active_element

    assert press(Keys.TAB).text == "Skip to the content"
    press(Keys.ENTER)
    assert driver.switch_to.active_element.get_attribute("id") == "main"
    table.part("search").send_keys("species 7")
    press(Keys.TAB)
    assert press("few").get_attribute("value") == "few" and set(table.column(1)) == {"few"}
    press(Keys.TAB)
    assert press(Keys.TAB).text == "Download CSV"
    press(Keys.TAB)  # the table, which scrolls
    assert press(Keys.TAB).text == "Class"
    press(Keys.ENTER)
    names = table.column(0)
    assert names == sorted(names, key=lambda name: int(name.split()[1])) and len(names) == 50  # 2 before 10
    for _ in range(7):
        press(Keys.TAB)
    assert press(Keys.TAB).text == "Previous"
    assert press(Keys.TAB).text == "Next"
    press(Keys.SPACE)
    assert table.status.startswith("51 to 100") and driver.switch_to.active_element.text == "Next"
    assert driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_link_finds_its_class_wherever_it_is(table: Table) -> None:
    table.part("search").send_keys("nothing")
    link = table.driver.find_element(By.CSS_SELECTOR, "#classes ~ .columns a")
    link.click()
    number = str(link.get_attribute("href")).rpartition("-")[2]
    row = table.driver.switch_to.active_element
    assert row.get_attribute("id") == f"class-{number}" and row.find_element(By.TAG_NAME, "th").text == link.text


def csv_of(driver: WebDriver) -> list[str]:
    """Return the lines of the file that the page offers."""
    script = """
      const done = arguments[0], real = URL.createObjectURL;
      URL.createObjectURL = (blob) => { blob.text().then(done); return real(blob); };
      HTMLAnchorElement.prototype.click = () => {};
      document.querySelector("[data-part=csv]").dispatchEvent(new MouseEvent("click"));"""
    return str(driver.execute_async_script(script)).split("\r\n")


def test_names_of_classes_are_text_wherever_they_go(table: Table, many: tuple[Path, dict[str, Any]]) -> None:
    driver = table.driver
    table.head("name").find_element(By.TAG_NAME, "button").click()
    shown = []
    for name in HOSTILE:
        table.part("search").clear()
        table.part("search").send_keys(name)
        shown += table.column(0)
    assert shown == list(HOSTILE)
    assert driver.execute_script("return window.hacked") is None
    lines = csv_of(driver)
    assert lines[0].lstrip("\ufeff").startswith('"class","name","group"') and len(lines) == CLASSES + 2
    assert lines[3].startswith('2,"\'=1+1,""b""",many,') or '"\'=1+1,""b"""' in lines[3]  # no formula to a spreadsheet
    assert errors_of(driver) == []


def test_a_page_runs_no_script_but_its_own_and_asks_for_nothing(table: Table) -> None:
    """Were a name not escaped somewhere, it still could do nothing."""
    table.driver.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hacked=1>');"
        "const own = document.createElement('script'); own.textContent = 'window.hacked = 1'; document.body.append(own)"
    )
    assert table.driver.execute_script("return window.hacked") is None
    refused = errors_of(table.driver)
    assert len(refused) >= 2 and all("Content Security Policy" in text for text in refused)


def test_without_scripts_the_lowest_stand_there(many: tuple[Path, dict[str, Any]]) -> None:
    with chromium() as driver:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        driver.get(many[0].as_uri())
        assert len(driver.find_elements(By.CSS_SELECTOR, ".class-table tbody tr")) == 50
        assert not driver.find_element(By.CSS_SELECTOR, ".controls").is_displayed()
        assert "With scripts this table" in driver.find_element(By.TAG_NAME, "noscript").text


def test_on_paper_it_is_dark_on_white_without_controls(browser: WebDriver, many: tuple[Path, dict[str, Any]]) -> None:
    browser.get(many[0].as_uri())
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    try:
        colours = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        assert browser.execute_script(colours) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
        for part in (".controls", ".pager", "nav"):
            assert not browser.find_element(By.CSS_SELECTOR, part).is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def other_pages() -> dict[str, str]:
    """Return a page of each other kind."""
    given = arrays(60, 30)
    counts = given["train_counts"]
    facts = ("test", "ab" * 32, tuple(given["class_names"]), counts, counts, given["targets"])
    one, two, three = (Evaluated(m.name, Evidence(*facts, m.predictions), "run", m.name) for m in given["models"])
    compared = side_by_side([one, two, three])
    checks = [{"rule": "h_mean_gain", "passed": False, "text": "H-mean changes by " + "little " * 40}]
    decision = {
        "model": "trees",
        "version": 3,
        "decision": "refused",
        "by": "me",
        "at": "now",
        "champion_before": None,
        "run_id": "r1",
        "force": None,
        "checks": checks,
        "reasons": [],
        "comparison": compared,
        "candidate": None,
        "rules": {"class_loss": 0.1},
    }
    first = decision | {"decision": "promoted", "comparison": None, "candidate": single_document(one)}
    figures = {name: 0.25 for name in ("h_mean", "g_mean", "lowest_recall", "accuracy", "many", "medium", "few")}
    rows = [Row({"Model": "<a>", "lambda": "0"}, [{**figures, "zero_recall_classes": 2}] * 2)]
    document = comparison(
        "T", rows, name="x", run_id="r", created="now", split="test", split_hash="ab" * 32, seeds=[0, 1],
        warnings=["look"], runs=[{"seed": 0, "run_id": "r-seed0", "report": "report.html"}],
        differences=[{"first": "a", "second": "b", "figures": {"h_mean": {"mean": 0.1, "low": 0.0, "high": 0.2}}}],
    )  # fmt: skip
    curve = interpolation_chart([0, 0.5, 1], [0.2, 0.4, 0.3], 0.35, "H-mean", "H-mean between the two")
    long = [f"{c}_{'Animalia_Chordata_' * 6}" for c in range(60)]
    return {
        "run": render_html(build_report(**{**given, "class_names": long}), {}, "No images are shown: <gone>"),
        "compare": side_by_side_html(compared),
        "decision": decision_html(decision),
        "first": decision_html(first),
        "comparison": comparison_html(document, {"A to B": [curve]}, "lambda is a share"),
    }


def test_the_table_of_one_model_alone(browser: WebDriver, tmp_path: Path) -> None:
    page = tmp_path / "first.html"
    page.write_text(other_pages()["first"], encoding="utf-8")
    browser.get(page.as_uri())
    table = Table(browser)
    assert [head.text for head in browser.find_elements(By.CSS_SELECTOR, ".class-table thead th")] == [
        *("Class", "Group", "Training images", "Test images", "Recall")
    ]
    assert table.status == "1 to 50 of 60 classes"
    lowest = [float(text) for text in table.column(4)]
    assert lowest == sorted(lowest) and len(set(lowest)) > 5
    table.head("after").find_element(By.TAG_NAME, "button").click()
    assert float(table.column(4)[0]) > lowest[0]
    Select(table.part("change")).select_by_visible_text("zero recall")
    assert table.status == "No class of 60 matches."
    assert csv_of(browser)[0].lstrip("\ufeff") == '"class","name","group","training images","test images","recall"'
    assert errors_of(browser) == [] and browser.execute_script("return window.hacked") is None


@pytest.mark.parametrize("dark", [False, True])
def test_the_other_pages_are_like_it(dark: bool, tmp_path: Path) -> None:
    with chromium(dark=dark, width=390) as driver:
        for name, html in other_pages().items():
            (tmp_path / f"{name}.html").write_text(html, encoding="utf-8")
            driver.get((tmp_path / f"{name}.html").as_uri())
            assert faults(driver) == [], name
            assert driver.execute_script("return document.documentElement.scrollWidth") == 390, name
            assert driver.execute_script("return window.hacked") is None
            paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (paper != "rgb(255, 255, 255)") == dark
            tables = driver.find_elements(By.CSS_SELECTOR, ".class-table")
            assert len(tables) == {"run": 1, "compare": 2, "decision": 1, "first": 1, "comparison": 0}[name]
            if name == "compare":  # each of its tables is its own
                driver.find_element(By.CSS_SELECTOR, "a[href^='#C-class']").click()
                row = driver.switch_to.active_element
                assert str(row.get_attribute("id")).startswith("C-class-")
                assert tables[1].find_elements(By.ID, str(row.get_attribute("id"))) == [row]
