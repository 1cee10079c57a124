# Sourced by quickstart.sh and test.sh: make a virtual environment once, and install this package into it.
#
#   use_environment [EXTRA]     makes and activates the environment; EXTRA is an extra of setup.py (`test`)
#   install_if_possible EXTRA MODULE CONSEQUENCE
#                               installs an extra that provides MODULE. It tries only once; if that fails, it prints the
#                               CONSEQUENCE of not having the extra
#
# BNB_VENV names the environment's directory (default: .venv in the repository). To rebuild it, delete the directory.
# BNB_WHEELHOUSE names a directory that wheelhouse.sh filled; everything is then installed from there, without a network.
# The versions are those of constraints.txt.
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

# What an environment was made from: it is installed again when one of these files changes.
ingredients() { cat "$1/setup.py" "$1/runs/constraints.txt"; }

# install_editable ROOT EXTRA: the options are an array, so that paths may hold spaces.
install_editable() {
    local options=(--quiet --disable-pip-version-check --constraint "$1/runs/constraints.txt")
    [ -z "${BNB_WHEELHOUSE:-}" ] || options+=(--no-index --find-links "$BNB_WHEELHOUSE")
    python -m pip install "${options[@]}" --editable "$1${2:+[$2]}"
}

# install_torch ROOT [OPTION]: from BNB_TORCH_INDEX.
install_torch() {
    python -m pip install --quiet --disable-pip-version-check --constraint "$1/runs/constraints.txt" ${2:+"$2"} torch \
        --index-url "$BNB_TORCH_INDEX"
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
    if ! cmp --silent "$stamp" <(ingredients "$root") &&
        ! { [ -z "$extra" ] && cmp --silent "$venv/.installed-test" <(ingredients "$root"); }; then
        echo "installing into $venv (once; a few minutes)"
        [ -z "${BNB_TORCH_INDEX:-}" ] || install_torch "$root"
        install_editable "$root" "$extra"
        ingredients "$root" > "$stamp"
    fi
    require_usable_gpu "$root"
}

# require_usable_gpu ROOT: where a GPU is seen, run one kernel. If torch cannot, say which wheel to take, and take that
# of BNB_TORCH_INDEX.
require_usable_gpu() {
    if ! command -v nvidia-smi > /dev/null; then return; fi
    local code=0
    if [ -n "${BNB_TORCH_INDEX:-}" ] && ! python -m bnb_ds.common.torch_build 2> /dev/null; then
        echo "installing torch from $BNB_TORCH_INDEX, because the installed one cannot use this GPU"
        install_torch "$1" --force-reinstall
    fi
    python -m bnb_ds.common.torch_build || code=$?
    return "$code"
}

install_if_possible() {
    local extra=$1 module=$2 consequence=$3 root stamp
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    stamp=$VIRTUAL_ENV/.tried-$extra
    if python -c "import $module" 2> /dev/null || cmp --silent "$stamp" <(ingredients "$root"); then return; fi
    ingredients "$root" > "$stamp"
    install_editable "$root" "$extra" > "$stamp.log" 2>&1 ||
        echo "cannot install the extra [$extra] (see $stamp.log): $consequence"
}
