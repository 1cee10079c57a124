# Sourced by quickstart.sh and test.sh: make the virtual environment and install this package into it, once.
#
#   use_environment [EXTRA]             activates it; EXTRA is an extra of setup.py (`test`)
#   install_if_possible EXTRA MODULE WITHOUT
#                                       then: adds an extra that brings MODULE; tries once, and where it cannot says so,
#                                       and what is the case WITHOUT it
#
# BNB_VENV names the environment's directory (default: .venv in the repository). It is rebuilt only by deleting it.

find_python() {
    local candidate
    for candidate in python3 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "no Python 3.10, 3.11 or 3.12 found on PATH; install one" >&2
    return 1
}

use_environment() {
    local extra=${1:-} root venv stamp
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    venv=${BNB_VENV:-$root/.venv}
    stamp=$venv/.installed-${extra:-base}
    if [ ! -x "$venv/bin/python" ]; then
        "$(find_python)" -m venv "$venv"
    fi
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
    # An environment with an extra has the rest as well.
    if ! cmp --silent "$stamp" "$root/setup.py" && ! { [ -z "$extra" ] && cmp --silent "$venv/.installed-test" "$root/setup.py"; }; then
        echo "installing into $venv (once; a few minutes)"
        python -m pip install --quiet --disable-pip-version-check --editable "$root${extra:+[$extra]}"
        cp "$root/setup.py" "$stamp"
    fi
}

install_if_possible() {
    local extra=$1 module=$2 without=$3 root stamp
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    stamp=$VIRTUAL_ENV/.tried-$extra
    if python -c "import $module" 2> /dev/null || cmp --silent "$stamp" "$root/setup.py"; then return; fi
    cp "$root/setup.py" "$stamp"
    python -m pip install --quiet --disable-pip-version-check --editable "$root[$extra]" > "$stamp.log" 2>&1 ||
        echo "cannot install the extra [$extra] (see $stamp.log): $without"
}
