# Sourced by the launch scripts.

# wait_through_signals PID: wait for a background process however many signals are handled meanwhile; return its status.
wait_through_signals() {
    local code again
    while :; do
        code=0
        wait "$1" || code=$?
        # Above 128 it may be `wait` itself that a signal has interrupted.
        [ "$code" -gt 128 ] || return "$code"
        kill -0 "$1" 2> /dev/null || break
    done
    again=0
    wait "$1" 2> /dev/null || again=$?
    [ "$again" = 127 ] || code=$again # 127: its status has been told already
    return "$code"
}
