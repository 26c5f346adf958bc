"""Tiers, what every test starts with, and fixtures of all tests.

A test without a marker is of the quick tier: no child process, 20 seconds, the same whatever ran before it.
"""

import ctypes
import gc
import os
import platform
import random
import subprocess
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from families import FAMILIES, Family
from hub_server import HubServer

TIERS = {"slow", "processes", "browser", "machine"}
QUICK_SECONDS, OTHER_SECONDS = 20, 600

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores; threads that wait for each other are far slower


def is_quick(item: pytest.Item) -> bool:
    return TIERS.isdisjoint(marker.name for marker in item.iter_markers())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(QUICK_SECONDS if is_quick(item) else OTHER_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Random numbers begin anew with each test; the quick tier starts no process, fixtures of modules included."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    if is_quick(item):
        with patch.object(subprocess.Popen, "__init__", refuse):
            return (yield)
    return (yield)


def refuse(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
    self._child_created = False  # what Popen.__del__ asks
    raise AssertionError(f"the quick tier starts no process, here {command}: mark it processes")


@pytest.fixture(scope="module", autouse=True)
def memory_goes_back() -> Iterator[None]:
    """What a file's tests have freed, which scripts that ran in this process told glibc to keep."""
    yield
    if platform.libc_ver()[0] == "glibc":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def own_warnings(recwarn: pytest.WarningsRecorder) -> pytest.WarningsRecorder:
    """What this test warns of: whatever other tests have left open is collected before."""
    gc.collect()
    recwarn.clear()
    return recwarn


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """Each of the three families."""
    return request.param


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A stand-in for the Hugging Face Hub, empty, on loopback."""
    with HubServer() as server:
        yield server
