"""A real headless Chromium for the tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's, started with one window less: none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("the pages are tested in Chromium, which is not there; install it with `apt-get install chromium`.")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # which root cannot have
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        try:
            yield browser
        finally:
            browser.close()
