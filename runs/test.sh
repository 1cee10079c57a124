#!/usr/bin/env bash
# The one test command: makes its environment and runs the suite. Arguments go to pytest, for example -m "not slow".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source runs/environment.sh
use_environment test
# Built from source, with a C++ compiler, which not every machine has: without it the tests of language models skip.
install_if_possible lm kenlm "the tests of n-gram language models are skipped"
# Half of the suite is the start of processes; where bytecode may not be kept, each compiles this package anew.
unset PYTHONDONTWRITEBYTECODE
# Two ranks share the cores of a test machine; one thread each is fastest there, and hides no nondeterminism.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Two files at a time; file by file, as fixtures are shared within them, files with slow tests first (tests/conftest.py).
exec python -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
