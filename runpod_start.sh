#!/usr/bin/env bash
# Install on a GPU pod and run the suite on its GPU. See --help.
set -euo pipefail

usage() {
    cat <<'EOF'
Usage: ./runpod_start.sh [--quick]

Checks the GPU, installs into the current environment (see ./setup.sh --help) and
runs the suite on the GPU. Results go to results/ beside this script.

  --quick     the forensics tests: pytest -m forensics --gpu
  (without)   the full sweep: pytest -m sweep --gpu (hours; resumes where it was stopped)
  -h, --help  show this text

Environment:
  PYTHON      the Python to use, default: python3

Examples:
  ./runpod_start.sh --quick
  PYTHON=python3.12 ./runpod_start.sh --quick
EOF
}

say() { printf 'runpod_start.sh: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

quick=no
for argument in "$@"; do
    case $argument in
        --quick) quick=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            say "unknown argument '$argument'"
            usage >&2
            exit 2
            ;;
    esac
done

command -v nvidia-smi >/dev/null ||
    die "no nvidia-smi on PATH, so there is no NVIDIA GPU to use. On a pod, choose a GPU type;" \
        "with docker run, add --gpus all; without a GPU, run ./setup.sh --local -- pytest"
gpus=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>&1) ||
    die "nvidia-smi finds no usable GPU, it says: $gpus." \
        "Restart the pod or container, or check the driver on the host."
say "GPU: $gpus"

cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
export PYTHON="${PYTHON:-python3}"
# A pod or a container can be thrown away, so pip may write to a system Python there.
if [ -n "${RUNPOD_POD_ID:-}" ] || [ -e /.dockerenv ] || [ -e /run/.containerenv ]; then
    export PIP_BREAK_SYSTEM_PACKAGES="${PIP_BREAK_SYSTEM_PACKAGES:-1}"
fi
./setup.sh -- "$PYTHON" -c 'import sys, torch
if not torch.cuda.is_available():
    sys.exit(f"runpod_start.sh: torch {torch.__version__}, built for CUDA {torch.version.cuda}, "
             "cannot use the GPU. Choose an image whose torch has CUDA, no newer than the "
             "CUDA version that nvidia-smi shows.")'

mkdir -p results
if [ $quick = yes ]; then
    exec ./setup.sh -- pytest -m forensics --gpu
fi
exec ./setup.sh -- pytest -m sweep --gpu
