"""Fixtures of all tests."""

import os

import pytest
import torch
from families import FAMILIES, Family

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores; threads that wait for each other are far slower


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """Each of the three families."""
    return request.param
