"""Fixtures of all tests."""

import pytest
from families import FAMILIES, Family


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """Each of the three families."""
    return request.param
