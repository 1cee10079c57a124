#!/usr/bin/env bash
# Collect everything that an installation needs into one directory, for machines without a network. Run it where there is
# one, on the same kind of system and with the same Python as those machines.
#
#   bash runs/wheelhouse.sh DIRECTORY [EXTRA,EXTRA]
#
#   DIRECTORY   gets a wheel of this checkout and of every package that it needs, in the versions of constraints.txt
#   EXTRA       extras of setup.py (default fast,filters,plot,serve)
#
# PYTHON names the interpreter (default python3). The variables of pip choose the index, for example
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for the CPU build of torch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ $# -lt 1 ] || [ $# -gt 2 ] || [ "${1#-}" != "$1" ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
directory=$1 extras=${2-fast,filters,plot,serve} python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' ||
    { echo "wheelhouse: error: $python is not Python 3.10, 3.11 or 3.12; name one with PYTHON=" >&2; exit 2; }
mkdir -p "$directory"
# setuptools builds the checkout again where it is installed as editable.
"$python" -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$directory" \
    --constraint "$root/runs/constraints.txt" "$root${extras:+[$extras]}" "setuptools>=64" wheel pip
cp "$root/runs/constraints.txt" "$directory"
cat <<TEXT
wheelhouse: $(find "$directory" -name '*.whl' | wc -l) wheels in $directory. On a machine without a network:
    python3 -m venv .venv && source .venv/bin/activate
    pip install --no-index --find-links $directory "bnb_ds${extras:+[$extras]}"
or, with a checkout, BNB_WHEELHOUSE=$directory before runs/quickstart.sh or runs/test.sh
TEXT
