#!/usr/bin/env bash
# Check everything that a GPU computes, in less than six minutes: right results, waits, speed against floors.
#
#   bash runs/gpu_check.sh            on the first GPU; in the repository, with torch, triton, transformers and NumPy
#   DRY=1 bash runs/gpu_check.sh      the same on a CPU, with tiny sizes
#   PARTS="waits head_speed" bash runs/gpu_check.sh      some parts alone
#
# It needs no network and no DeepSpeed; tests/gpu shows what needs them. PYTHON names the interpreter. OUT is the
# directory of the results (default: gpu_check_out): report.txt, and report.json with one entry for each figure. Each
# part has its own time limit, and none stops the others. The exit code is 1 if a result is wrong.
set -u
python=${PYTHON:-python3} out=${OUT:-gpu_check_out} dry=()
# Relative paths are the caller's.
case $out in /*) ;; *) out=$PWD/$out ;; esac
case $python in /*) ;; */*) python=$PWD/$python ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
[ "${DRY:-0}" = 0 ] || dry=(--dry)
seconds_in_all=${SECONDS_IN_ALL:-345}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out" && rm -f "$out/figures.jsonl" || exit
check() { "$python" -m bnb_ds.bench.gpu_check.parts "$@" --out "$out" "${dry[@]}"; }
parts=$(check list) || exit
if [ -n "${PARTS:-}" ]; then
    chosen=()
    for part in $PARTS; do
        line=$(grep "^$part " <<< "$parts") || {
            echo "PARTS: there is no such part: $part" >&2
            exit 2
        }
        chosen+=("$line")
    done
    parts=$(printf '%s\n' "${chosen[@]}")
fi
{
    [ ${#dry[@]} -gt 0 ] || nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv
    while read -r part limit; do
        left=$((seconds_in_all - SECONDS))
        [ "$limit" -le "$left" ] || limit=$left
        [ "$limit" -lt 5 ] ||
            timeout -k 5 "$limit" "$python" -m bnb_ds.bench.gpu_check.parts "$part" --out "$out" "${dry[@]}" 2>&1
    done <<< "$parts"
    # shellcheck disable=SC2046
    check table $(cut -d ' ' -f 1 <<< "$parts")
    echo "exit code $?" > "$out/.ended"
} | tee "$out/report.txt"
code=$(cut -d ' ' -f 3 "$out/.ended")
rm -f "$out/.ended"
exit "$code"
