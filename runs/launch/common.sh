# Sourced by the launch scripts from the repository root: options, and waiting for a job while signals are handled.

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "runs/launch/${0##*/}" | sed '$d' >&2; exit 2; }
fail() { echo "${0##*/}: error: $1" >&2; exit 2; }

# parse_options NAME... -- ARGUMENT...: for each leading `--NAME VALUE`, set the variable NAME.
# The array `program` gets the other arguments, with the script to run in front (default: runs/pretrain.py).
parse_options() {
    local names=" "
    while [ "$1" != -- ]; do names+="$1 "; shift; done
    shift
    while [[ ${1:-} == --* ]]; do
        [ "$1" != --help ] || usage
        [[ $names == *" ${1#--} "* ]] || break # an option of the program
        [ $# -ge 2 ] || fail "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift 2
    done
    [ $# -gt 0 ] || usage
    with_program "$@"
}

# with_program ARGUMENT...: the array `program` gets the arguments, with runs/pretrain.py in front unless a script is named.
with_program() {
    program=("$@")
    [[ ${1:-} == *.py ]] || program=(runs/pretrain.py "$@")
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
