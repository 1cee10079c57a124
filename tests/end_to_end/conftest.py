"""Fixtures of the tests of whole programs."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A `tests.installing.Installed`."""
    from tests.installing import Installed

    return Installed(tmp_path_factory.mktemp("installed"))
