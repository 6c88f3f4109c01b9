"""What people see of a run in Prefect's UI: its pages in a real browser, from a real server."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import chromium, errors_of, needs_chromium
from conftest import Btm, clean_environment
from prefect_server import PrefectServer, until
from selenium.common.exceptions import NoSuchElementException
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

QUICK = [f"--set={value}" for value in ("pretrain.epochs=2", "finetune.epochs=1", "post_train.epochs=1")]
QUICK += ["--set=sampling.num_subsets=2", "--set=evaluation.baseline=false"]

LONG_STAGE = """
import threading
from prefect import flow
from prefect.artifacts import Artifact
from flows import prefect_pages
from tasks.events import publish

prefect_pages.PROGRESS_SECONDS = 0.05
STEP = {"step": "finetune/subset-03-00ff", "stage": "finetune"}
EPOCH = {"epochs": 4, "loss": 0.5, "images": 100, "seconds": 0.1}

@flow
def long():
    with prefect_pages.in_prefect():
        publish({**STEP, "event": "queued"})
        publish({**STEP, "event": "started"})
        publish({**STEP, "event": "epoch", "epoch": 1, **EPOCH})
        while (kept := Artifact.get("btm-finetune")) is None or "epoch 1/4" not in kept.description:
            pass
        assert kept.data == 25.0, kept
        publish({**STEP, "event": "done"})

long()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    server = PrefectServer(tmp_path_factory.mktemp("prefect"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def seen(driver: WebDriver, text: str) -> WebElement:
    """Wait for an element that holds a text."""
    found = WebDriverWait(driver, 30, ignored_exceptions=[NoSuchElementException])
    return found.until(
        lambda d: d.find_element(By.XPATH, f"//*[not(*) and normalize-space()='{text}']"), f"no {text!r}"
    )


@pytest.mark.slow
@needs_chromium
def test_a_run_can_be_followed_and_started_in_the_browser(btm: Btm, server: PrefectServer, tmp_path: Path) -> None:
    done = btm("deploy", "digits-lt", *QUICK, cwd=tmp_path, **server.environment)
    assert done.returncode == 0, done.stderr
    done = btm("run", "digits-lt", *QUICK, cwd=tmp_path, BTM_DEVICE="cpu", **server.environment)
    assert done.returncode == 0, done.stderr
    [run] = [run for run in server.all("flow_runs") if run["state_name"] == "Completed"]
    artifacts = {one["key"]: one for one in server.all("artifacts") if one["flow_run_id"] == run["id"]}
    assert set(artifacts) == {"btm-models", "btm-report-digits-lt"}
    home = f"http://127.0.0.1:{server.port}"
    with chromium(offline=False, height=8000) as driver:
        driver.get(f"{home}/runs/flow-run/{run['id']}")
        seen(driver, run["name"])
        seen(driver, "sample balanced subsets: started")
        driver.get(f"{home}/artifacts/artifact/{artifacts['btm-models']['id']}")
        for name in ("stage 1", "ingredient 01", "soup", "final", "lowest recall"):
            seen(driver, name)
        driver.get(f"{home}/artifacts/artifact/{artifacts['btm-report-digits-lt']['id']}")
        seen(driver, "digits-lt, seed 0")
        drawn = "return [...document.querySelectorAll('img[src^=\"data:\"]')].map(i => i.naturalWidth)"
        widths = WebDriverWait(driver, 30).until(lambda d: [w for w in d.execute_script(drawn) if w] or None)
        assert len(widths) == 2 and min(widths) > 500
        [deployment] = server.all("deployments", deployments={"name": {"any_": ["digits-lt"]}})
        driver.get(f"{home}/deployments/deployment/{deployment['id']}/run")
        fill(driver, "paco")
        assert not [error for error in errors_of(driver) if "favicon" not in error and "/ico/" not in error]
    [started] = until(lambda: server.runs("digits-lt"), 30)
    method = started["parameters"]["experiment"]["pretrain"]["method"]
    assert method["name"] == "paco" and method["queue"] == 8192
    assert started["parameters"]["experiment"]["finetune"]["epochs"] == 1


def fill(driver: WebDriver, method: str) -> None:
    """Choose a method of stage 1, and submit: by mouse, as people do."""
    seen(driver, "num_subsets (Optional)")
    WebDriverWait(driver, 30).until(lambda d: [b for b in d.find_elements(By.TAG_NAME, "button") if b.text == method])
    [tab] = [button for button in driver.find_elements(By.TAG_NAME, "button") if button.text == method]
    tab.click()
    seen(driver, "embeddings of past images to contrast with")
    [submit] = [button for button in driver.find_elements(By.TAG_NAME, "button") if button.text == "Submit"]
    submit.click()
    WebDriverWait(driver, 30).until(lambda d: not d.current_url.endswith("/run"))


@pytest.mark.slow
def test_a_long_stage_has_a_progress_artifact(server: PrefectServer, tmp_path: Path) -> None:
    import subprocess

    environment = {**clean_environment(), **server.environment}
    subprocess.run([sys.executable, "-c", LONG_STAGE], check=True, env=environment, cwd=tmp_path, timeout=120)
    [kept] = [one for one in server.all("artifacts") if one["key"] == "btm-finetune"]
    assert kept["type"] == "progress" and kept["data"] == 100.0 and kept["flow_run_id"]
    assert kept["description"] == "fine-tune on subsets: done"
