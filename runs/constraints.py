"""Write runs/constraints.txt from the running environment, after the suite has passed in it: python runs/constraints.py

runs/environment.sh, the containers and wheelhouses install these versions. setup.py states the ranges that work.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

FILE = Path(__file__).with_name("constraints.txt")
SETUP = Path(__file__).resolve().parents[1] / "setup.py"
#: newer releases work too, see setup.py; this range has a CPU build that is small
_TORCH = "torch<2.14"
_HEAD = """\
# The versions that the test suite runs with, of what setup.py names; `python runs/constraints.py` writes this file.
# Packages that Python 3.10 has older releases of are held on the Python of the suite and later ones only.
"""


def requirements() -> list[str]:
    """Every requirement that setup.py names, extras included."""
    found: list[str] = []
    for node in ast.parse(SETUP.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == "INSTALL_REQUIRES":
                found += ast.literal_eval(node.value)
            elif node.targets[0].id == "EXTRAS_REQUIRE":
                found += [requirement for extra in ast.literal_eval(node.value).values() for requirement in extra]
    return found


def name_of(requirement: str) -> str:
    """The package of a requirement, without extras and versions, as package indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def constraints() -> str:
    """The content of the file, for the running environment. Packages that it lacks are left free."""
    lines = []
    for name in sorted({name_of(requirement) for requirement in requirements()} - {"torch"}):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        lines.append(f'{name}=={version}; python_version >= "{sys.version_info[0]}.{sys.version_info[1]}"\n')
    return "".join([_HEAD, f"{_TORCH}\n", *lines])


if __name__ == "__main__":
    FILE.write_text(constraints(), encoding="utf-8")
