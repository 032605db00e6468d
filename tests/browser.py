"""A browser for the tests of HTML pages, and what they look for in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the extra dev installs playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra dev installs its rules")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
HOSTILE = (
    "</script><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "\u202egnp.exe מילה ערבית",
    "\U0001f9ff\u200d\U0001f415",
    "w" * 10_000,
    "many words " * 900,
)
"""Texts that a page must show as they are."""


@contextmanager
def launched() -> Iterator[Any]:
    """A running Chromium."""
    # A container's root user may not have the sandbox.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def violations(page: Any) -> list[tuple[str, str]]:
    """The rules of axe-core that the page breaks seriously, with the elements."""
    found = axe.Axe().run(page).response["violations"]
    return [(each["id"], each["nodes"][0]["html"][:120]) for each in found if each["impact"] in ("serious", "critical")]
