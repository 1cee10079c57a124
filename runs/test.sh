#!/usr/bin/env bash
# Make the test environment, and run the tests. Arguments are passed to pytest, for example -m "not slow".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source runs/environment.sh
use_environment test
# kenlm is built from source with a C++ compiler. Without one, the tests of language models are skipped.
install_if_possible lm kenlm "the tests of n-gram language models are skipped"
# The tests start many processes, and without cached bytecode each would compile the package again.
unset PYTHONDONTWRITEBYTECODE
# Two ranks share the cores of a test machine, where one thread per rank is fastest.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Run three files at a time: tests of ranks and programs wait for a third of their time, so this suits two cores. A file is
# not split, because its tests share fixtures. Files with slow tests come first (tests/conftest.py).
exec python -m pytest --numprocesses "${TEST_PROCESSES:-3}" --dist loadfile --no-loadscope-reorder "$@"
