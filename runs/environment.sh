# Sourced by quickstart.sh and test.sh: make a virtual environment once, and install this package into it.
#
#   use_environment [EXTRA]     makes and activates the environment; EXTRA is an extra of setup.py (`test`)
#   install_if_possible EXTRA MODULE CONSEQUENCE
#                               installs an extra that provides MODULE. It tries only once; if that fails, it prints the
#                               CONSEQUENCE of not having the extra
#
# BNB_VENV names the environment's directory (default: .venv in the repository). To rebuild it, delete the directory.
# BNB_TORCH_INDEX is the index from which torch is installed (default: PyPI's). A V100 needs
# https://download.pytorch.org/whl/cu126, because PyPI's wheels have no code for it.

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
    # An environment with the extra `test` also has the base packages.
    if ! cmp --silent "$stamp" "$root/setup.py" && ! { [ -z "$extra" ] && cmp --silent "$venv/.installed-test" "$root/setup.py"; }; then
        echo "installing into $venv (once; a few minutes)"
        if [ -n "${BNB_TORCH_INDEX:-}" ]; then
            python -m pip install --quiet --disable-pip-version-check torch --index-url "$BNB_TORCH_INDEX"
        fi
        python -m pip install --quiet --disable-pip-version-check --editable "$root${extra:+[$extra]}"
        cp "$root/setup.py" "$stamp"
    fi
    require_usable_gpu
}

# Where a GPU is seen, run one kernel. If torch cannot, say which wheel to take, and take that of BNB_TORCH_INDEX.
require_usable_gpu() {
    if [ -z "${CUDA_VISIBLE_DEVICES-all}" ] || ! nvidia-smi -L > /dev/null 2>&1; then return; fi
    local code=0
    if [ -n "${BNB_TORCH_INDEX:-}" ] && ! python -m bnb_ds.common.torch_build 2> /dev/null; then
        echo "installing torch from $BNB_TORCH_INDEX, because the installed one cannot use this GPU"
        python -m pip install --quiet --disable-pip-version-check --force-reinstall torch --index-url "$BNB_TORCH_INDEX"
    fi
    python -m bnb_ds.common.torch_build || code=$?
    return "$code"
}

install_if_possible() {
    local extra=$1 module=$2 consequence=$3 root stamp
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    stamp=$VIRTUAL_ENV/.tried-$extra
    if python -c "import $module" 2> /dev/null || cmp --silent "$stamp" "$root/setup.py"; then return; fi
    cp "$root/setup.py" "$stamp"
    python -m pip install --quiet --disable-pip-version-check --editable "$root[$extra]" > "$stamp.log" 2>&1 ||
        echo "cannot install the extra [$extra] (see $stamp.log): $consequence"
}
