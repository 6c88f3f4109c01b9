"""A real browser for pages: headless Chromium, driven by Selenium, and axe-core's rules of accessibility."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver

__all__ = ["accessibility_faults", "chromium", "errors_of", "needs_chromium", "picture"]

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")

needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on this machine")


@contextmanager
def chromium(*, dark: bool = False, width: int = 1280, height: int = 900, offline: bool = True) -> Iterator[WebDriver]:
    """Run Chromium without a window; `offline`: whatever a page asks of the network fails."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
        f"--window-size={width},{height}",
        *(["--host-resolver-rules=MAP * ~NOTFOUND"] if offline else []),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(str(DRIVER)))
    try:
        # The window's size counts a frame that is not there.
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def errors_of(driver: WebDriver) -> list[str]:
    """Return what the browser's console says of failed requests and scripts."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def accessibility_faults(driver: WebDriver) -> list[str]:
    """Return what axe-core finds wrong with the page that is open: rule, and the elements."""
    found: dict[str, Any] = Axe().run(driver)
    return [f"{rule['id']}: {[node['html'][:120] for node in rule['nodes']]}" for rule in found["violations"]]


def picture(driver: WebDriver, path: Path, *, whole: bool = False) -> Path:
    """Write what is seen, or the `whole` page, as a PNG file."""
    if whole:
        height = driver.execute_script("return document.documentElement.scrollHeight")
        width = driver.execute_script("return window.innerWidth")
        size = {"width": width, "height": min(height, 12_000), "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.save_screenshot(str(path))
    return path
