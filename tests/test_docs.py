"""The documentation is what the code is: pages made from it, messages that exist, a site whose links lead somewhere."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from browser import accessibility_faults, chromium, errors_of, needs_chromium
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def tools() -> Iterator[Callable[[str], ModuleType]]:
    """Import a program of docs/tools, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS / "tools")
        yield importlib.import_module


@pytest.fixture
def generate(tools: Callable[[str], ModuleType]) -> ModuleType:
    return tools("generate")


def test_the_reference_is_what_the_code_says(generate: ModuleType) -> None:
    pages = generate.pages()
    assert {path.relative_to(DOCS).as_posix() for path in (DOCS / "reference").glob("*.md")} == set(pages)
    stale = [name for name, text in pages.items() if (DOCS / name).read_text(encoding="utf-8") != text]
    assert stale == [], f"docs/{stale[0]} is not what the code says: run `make docs`, and commit what it wrote"


def test_every_key_and_every_setting_says_what_it_is(tools: Callable[[str], ModuleType]) -> None:
    from btm_core.config import ExperimentConfig
    from btm_core.storage import StorageSettings
    from tasks.settings import RuntimeSettings

    pages = tools("settings_pages")
    sections = [("", ExperimentConfig), *pages.sections(ExperimentConfig)]
    assert len(sections) > 15
    sections += [("BTM", RuntimeSettings), ("BTM_STORE", StorageSettings)]
    bare = [
        f"{key}.{name}"
        for key, model in sections
        for name in model.model_fields
        if name != "name" and not pages.description(model, name)
    ]
    assert bare == []
    text = (DOCS / "reference" / "config.md").read_text(encoding="utf-8")
    assert "| `finetune.lr` | number, > 0 | `0.005` | peak learning rate |" in text  # bounds, and a parent's words
    assert "`pretrain.method.temperature`" in text


def test_every_command_and_option_is_in_the_reference() -> None:
    import typer

    from flows.cli import app

    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    root = typer.main.get_command(app)
    found = [("btm store gc", root.commands["store"].commands["gc"]), ("btm run", root.commands["run"])]
    for name, command in found:
        [section] = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        options = [o for p in command.params for o in p.opts if o.startswith("--")]
        assert len(options) > 4 and [o for o in options if f"`{o}`" not in section] == []


def messages() -> list[str]:
    """Return every text of the source, with `…` for what is put in."""
    found = []
    for package in ("btm_core", "tasks", "flows"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return [re.sub(r"%[sdr.]\w*", "…", text) for text in found]


def occurs(pattern: str, sources: list[str]) -> bool:
    """Whether one text of the source holds every piece of the pattern, in order."""
    pieces = [piece.strip() for piece in pattern.split("…") if piece.strip(" .,;:()")]
    assert sum(map(len, pieces)) > 10, f"{pattern} may be anything"
    search = re.compile(".*".join(re.escape(piece) for piece in pieces), re.DOTALL)
    return any(search.search(source) for source in sources)


def test_the_messages_of_troubleshooting_are_those_of_the_source() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    patterns = re.findall(r"^- `(.+)`$", text, re.MULTILINE)
    assert len(patterns) > 60
    assert len(patterns) == len(re.findall(r"^- ", text, re.MULTILINE)), "an entry is `- ` and a message in code"
    sources = messages()
    gone = [pattern for pattern in patterns if not occurs(pattern, sources)]
    assert gone == []
    assert not occurs("… is neither a preset nor a directory: …", sources)


def test_the_figures_are_those_of_the_results(
    tools: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = tools("figures")
    committed = {path.name: path.read_bytes() for path in (DOCS / "figures").glob("*-*.svg")}
    assert len(committed) == 10
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    figures.main([])
    drawn = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert drawn.keys() == committed.keys()
    for (
        name,
        text,
    ) in drawn.items():  # another version of matplotlib may place a tick otherwise: what is said is the same
        said = re.findall(r"<text[^>]*>([^<]*)", text)
        assert said and said == re.findall(r"<text[^>]*>([^<]*)", committed[name].decode()), (
            f"run docs/tools/figures.py: {name}"
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: what is not logged would not count as a warning.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_site_builds_strictly_and_asks_nobody_for_anything(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20 and (site / "reference" / "config.html").is_file()
    loaded = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="?(https?://[^"\s>]+)')
    assert {address for page in pages for address in loaded.findall(page.read_text(encoding="utf-8"))} == set()
    assert not (site / "tools").exists()
    library = (site / "library.html").read_text(encoding="utf-8")
    assert "balanced_subset" in library and "--8&lt;--" not in library


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_can_be_read_by_all(site: Path, scheme: str) -> None:
    pages = {"light": ("index", "library", "reference/commands"), "dark": ("concepts", "troubleshooting")}[scheme]
    with chromium(dark=scheme == "dark") as browser:
        for page in pages:
            browser.get((site / f"{page}.html").as_uri())
            widths = browser.execute_script(
                "return [...document.images].filter(i => i.offsetParent).map(i => i.naturalWidth)"
            )
            assert all(widths) and (widths or page not in ("index", "concepts"))
            assert accessibility_faults(browser) == [], page
            assert errors_of(browser) == [], page


@needs_chromium
def test_on_a_phone_nothing_is_cut_off_and_the_search_works_from_a_disk(site: Path) -> None:
    with chromium(width=390) as browser:
        for page in ("concepts", "schedulers", "serving", "reference/recipes", "reference/api"):
            browser.get((site / f"{page}.html").as_uri())
            assert browser.execute_script("return document.documentElement.scrollWidth") == 390, page
        browser.get((site / "index.html").as_uri())
        browser.execute_script("document.getElementById('__search').click()")
        browser.find_element("css selector", "input.md-search__input").send_keys("head_lr_factor")
        found = WebDriverWait(browser, 30).until(lambda b: b.find_elements("css selector", ".md-search-result__link"))
        assert any("reference/config.html" in str(link.get_attribute("href")) for link in found)
        assert errors_of(browser) == []
