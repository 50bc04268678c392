#!/usr/bin/env bash
# Runs a command for a limited time, so that a test that hangs fails and is told of.
#
#   limited.sh SECONDS COMMAND...
set -uo pipefail
limit=$1
shift
# It ends all that the command has started; a part of the terminal's Ctrl-C it is not.
timeout --kill-after=10 "$limit" "$@" &
running=$!
trap 'kill "$running" 2>/dev/null' INT TERM
wait "$running"
status=$?
if [ "$status" = 124 ] || [ "$status" = 137 ]; then
  printf '%s\n' "NOT DONE after $limit s: $*" \
    "A test hangs: those that had been running for over 60 seconds are named above, and were not named again when they ended." >&2
fi
exit "$status"
