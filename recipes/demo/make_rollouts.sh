#!/usr/bin/env bash
# Makes the demo's committed answers again: questions, eight answers each by SmolLM2, grades.
set -euo pipefail
cd "$(dirname "$0")"
RETRM=../../.venv/bin/retrm
PYTHON=../../.venv/bin/python
"$PYTHON" questions.py --split main > questions.jsonl
"$PYTHON" questions.py --split live > live.jsonl
"$RETRM" sample smollm2-135m questions.jsonl -n 8 --temperature 0.8 --max-new-tokens 64 --seed 0 \
    --batch-size 128 -o rollouts.jsonl
"$RETRM" grade rollouts.jsonl
