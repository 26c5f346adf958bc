"""A machine without Chromium."""

import pytest
from chromium import chromium


def test_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And fails: it does not skip the page."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match="is missing; install it with `apt-get install"), chromium():
        pass
