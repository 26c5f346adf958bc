"""Fixtures of all tests."""

import os
from collections.abc import Iterator

import pytest
import torch
from families import FAMILIES, Family
from hub_server import HubServer

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores; threads that wait for each other are far slower


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """Each of the three families."""
    return request.param


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A stand-in for the Hugging Face Hub, empty, on loopback."""
    with HubServer() as server:
        yield server
