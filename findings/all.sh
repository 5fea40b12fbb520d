#!/bin/bash
# Runs every finding (or those that are named) and prints a table; exit status 1 where one has changed.
cd "$(dirname "$0")" || exit 1
names=("$@")
[ $# -gt 0 ] || for file in *.sh; do
    case $file in all.sh | common.sh) ;; *) names+=("${file%.sh}") ;; esac
done
log=$(mktemp) table="" bad=0
trap 'rm -f "$log"' EXIT
for name in "${names[@]}"; do
    echo "== $name"
    begin=$SECONDS
    bash "$name.sh" 2>&1 | tee "$log"
    case ${PIPESTATUS[0]} in
        0) said="as stated" ;;
        75) said="not tried" ;;
        *) said="CHANGED" bad=1 ;;
    esac
    table+="| $name | $said | $((SECONDS - begin)) s | $(tail -n 1 "$log" | cut -c -120) |"$'\n'
done
printf '\n| finding | behavior | took | last line |\n|---|---|---|---|\n%s' "$table"
exit $bad
