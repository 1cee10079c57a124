# Sourced by the launch scripts: options, and waiting for a job while signals are handled.

# The folder of pretrain.py and finetune.py: runs/ of a checkout, or of an installed package.
programs=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$programs/launch/${0##*/}" | sed '$d' >&2; exit 2; }
fail() { echo "${0##*/}: error: $1" >&2; exit 2; }

# parse_options NAME... -- ARGUMENT...: for each leading `--NAME VALUE`, set the variable NAME. A flag may have dashes.
# The array `program` gets the other arguments, with the script to run in front (default: pretrain.py).
parse_options() {
    local names=" " name
    while [ "$1" != -- ]; do names+="$1 "; shift; done
    shift
    while [[ ${1:-} == --* ]]; do
        [ "$1" != --help ] || usage
        name=${1#--} name=${name//-/_}
        [[ $names == *" $name "* ]] || break # an option of the program
        [ $# -ge 2 ] || fail "$1 needs a value"
        printf -v "$name" %s "$2"
        shift 2
    done
    [ $# -gt 0 ] || usage
    with_program "$@"
}

# with_program ARGUMENT...: the array `program` gets the arguments. A script in front may be any file, or one of the two
# programs by name (finetune, runs/finetune.py); without one, pretrain.py is put there.
with_program() {
    local name=${1:-}
    name=${name##*/} name=${name%.py}
    if [[ ${1:-} == *.py && -f $1 ]]; then
        program=("$@")
    elif [[ ${1:-} =~ ^(runs/)?(pretrain|finetune)(\.py)?$ ]]; then
        program=("$programs/$name.py" "${@:2}")
    else
        program=("$programs/pretrain.py" "$@")
    fi
}

# use_interface NAME: let NCCL and Gloo use this network interface; an empty name leaves the choice to them.
use_interface() {
    [ -z "$1" ] || export NCCL_SOCKET_IFNAME=$1 GLOO_SOCKET_IFNAME=$1
}

# make_logs DIR FLAG: make the directory of the logs; FLAG names another one.
make_logs() {
    mkdir -p "$1" 2> /dev/null || fail "$1: cannot make this directory of logs; name another one with $2"
}

# wait_through_signals PID: wait for a background process, however many signals are handled meanwhile; return its status.
wait_through_signals() {
    local code again
    while :; do
        code=0
        wait "$1" || code=$?
        # A code above 128 may mean that a signal has interrupted `wait` itself.
        [ "$code" -gt 128 ] || return "$code"
        kill -0 "$1" 2> /dev/null || break
    done
    again=0
    wait "$1" 2> /dev/null || again=$?
    [ "$again" = 127 ] || code=$again # 127: bash has reported the status already
    return "$code"
}
