#!/usr/bin/env bash
# Job mine-1: mine.yaml, written by `relgrad submit`.
set -u
cd /home/me || exit 2
file=/home/me/runs/mine/jobs/mine-1/exit_code
rm -f "$file"
trap 'echo $? > "$file"' EXIT
[ -n "${HF_TOKEN:-}" ] || { echo "error: the variable HF_TOKEN is not set" >&2; exit 2; }

child= stopped= attempt=0
on_term() { stopped=1; [ -z "$child" ] || kill -TERM "$child"; }
trap on_term TERM
finish() {  # waits for the last command; a signal ends the first `wait`
  child=$!
  wait "$child"; code=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  child=
}
seconds_left() { local left=$((42900 - SECONDS)); echo $((left > 1 ? left : 1)); }
max_hours() { awk "BEGIN { left = $(seconds_left); print left / 3600 }"; }
while :; do
  limit="max_hours=$(max_hours)"
  /env/bin/python -m relgrad run mine.yaml grpo.steps=20 'task.path=my words.jsonl' out=/data/runs "$limit" &
  finish
  case "$code" in 0 | 2 | 3 | 124 | 130 | 143) break ;; esac
  if [ -n "$stopped" ] || [ "$attempt" -ge 3 ]; then break; fi
  attempt=$((attempt + 1))
  echo "exit code $code: the run goes on from its newest checkpoint (retry $attempt of 3)" >&2
done
if [ "$code" -eq 0 ]; then
  code=143  # of a job that was stopped before its evaluation
  if [ -z "$stopped" ]; then timeout --foreground "$(seconds_left)" /env/bin/python -m relgrad evaluate /data/runs/mine & finish; fi
fi
exit "$code"
