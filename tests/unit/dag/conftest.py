"""Values found by enumeration elsewhere, which the graph's code must give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    """Those that lie beside the checkout on the project's machines; skips where they do not."""
    path = Path(__file__).resolve().parents[3].parent / "shared" / "nar" / "vectors.json"
    if not path.is_file():
        pytest.skip(f"no vectors at {path}")
    return json.loads(path.read_text(encoding="utf-8"))
