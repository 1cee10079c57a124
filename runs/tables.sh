# Sourced by multi30k_table.sh and squad_table.sh: train the systems of a table one after another, and measure them beside
# each other. A script that sources it has
#
#   systems     prints a line for each system: its name, its seeds, its recipe, settings that differ, and after `|` ways to
#               decode it: a name, and after `:` settings of `bnb-ds bench frontier`
#   files       the files that must be there
#   prepare     makes what all systems need; its commands go through do_or_show
#   before NAME makes what one system needs besides
#   runs        directory of the runs
#   finetuning  arguments of every `bnb-ds finetune`
#   comparing   arguments of `bnb-ds bench frontier`

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '$d' >&2; exit 2; }
fail() { echo "$(basename "$0" .sh): error: $1" >&2; exit 2; }
do_or_show() { if $list; then printf '%q ' "$@"; echo; else "$@" < /dev/null; fi; }

# read_arguments ARGUMENT ...: sets list, compare, most_seeds and chosen.
read_arguments() {
    list=false compare=true most_seeds=9 chosen=""
    while [ $# -gt 0 ]; do
        case $1 in
            --list) list=true ;;
            --train) compare=false ;;
            --seeds) [[ ${2:-} =~ ^[1-9]$ ]] || fail "--seeds ${2:-}: give a number from 1 to 9"; most_seeds=$2; shift ;;
            -*) usage ;;
            *) systems | grep -q "^$1 " || fail "$1: no such system; --list shows the commands of all"; chosen+=" $1 " ;;
        esac
        shift
    done
}

make_table() {
    local compared=() trained described decodings decoding options name seeds recipe settings seed file
    source runs/environment.sh
    if ! $list; then
        for file in "${files[@]}"; do [ -f "$file" ] || fail "$file: no such file"; done
        use_environment
        export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
    fi
    prepare
    while IFS='|' read -r described decodings; do
        read -r name seeds recipe settings <<< "$described"
        [[ -z $chosen || $chosen == *" $name "* ]] || continue
        before "$name"
        trained=""
        for ((seed = 1; seed <= seeds && seed <= most_seeds; seed++)); do
            # shellcheck disable=SC2086 - settings are words
            do_or_show bnb-ds finetune "runs/recipes/finetune/$recipe.yaml" --resume auto $settings "${finetuning[@]}" \
                "output_dir=$runs/$name-$seed" "seed=$seed"
            trained+=${trained:+,}$runs/$name-$seed
        done
        while IFS=: read -rd ';' decoding options; do
            compared+=("${decoding# }=$trained${options:+:$options}")
        done <<< "${decodings% };"
    done < <(systems)
    ! $compare || do_or_show bnb-ds bench frontier "${compared[@]}" "${comparing[@]}"
}
