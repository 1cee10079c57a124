#!/usr/bin/env bash
# The one test command: makes its environment and runs the suite. Arguments go to pytest, for example -m "not slow".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source runs/environment.sh
use_environment test
# Two ranks share the cores of a test machine; one thread each is fastest there, and hides no nondeterminism.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Two files at a time; file by file, as fixtures are shared within them, in the order of their names: long ones first.
exec python -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
