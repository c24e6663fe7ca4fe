#!/usr/bin/env bash
# Install on a GPU pod and run the suite on its GPU. See --help.
set -euo pipefail

usage() {
    cat <<'EOF'
Usage: ./runpod_start.sh [--quick | --records]

Checks the GPU, installs into the current environment (see ./setup.sh --help) and
runs the suite on the GPU. Results go to results/ beside this script.

  --quick     the forensics tests: pytest -m forensics --gpu
  --records   all that docs/gpu.md commits, to results/gpu/; a second call goes on with the
              steps that are not finished
  (without)   the full sweep: pytest -m sweep --gpu (hours; resumes where it was stopped)
  -h, --help  show this text

Environment:
  PYTHON      the Python to use, default: python3
  PRECISION_FORENSICS_COMMIT
              the commit of a tree without .git, for --records

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

records=results/gpu failed=''

# Refuse to make records that name no commit, and to add to those of another one.
check_commit() {
    local commit=${PRECISION_FORENSICS_COMMIT:-}
    if [ -e .git ]; then
        commit=$(git rev-parse HEAD) || die "git cannot tell the commit, its message is above."
        [ -z "$(git status --porcelain)" ] ||
            die "the checkout has changes ('git status'), and its records would say so: commit them."
    fi
    [ -n "$commit" ] || die "there is no .git here, and a record needs a commit:" \
        "set PRECISION_FORENSICS_COMMIT to the commit of this tree."
    mkdir -p $records
    [ -e $records/commit ] || printf '%s\n' "$commit" >$records/commit
    [ "$(cat $records/commit)" = "$commit" ] ||
        die "$records holds records of commit $(cat $records/commit), but this is $commit." \
            "Move $records away, then run the same command again."
}

# Run step $1, whose command is the rest. $1.log is the output of a finished step, which is not run again.
step() {
    local log=$records/$1.log
    if [ -e "$log" ]; then
        say "$1: finished before"
    elif say "$1: ${*:2}" && ./setup.sh -- "${@:2}" 2>&1 | tee "$log.part"; then
        mv "$log.part" "$log"
    else
        failed="$failed $1"
    fi
}
forensics() { step "$1" pytest -m forensics --gpu --json-report-file="$records/$1.json" "${@:2}"; }
replay() {
    step "replay_$1" precision-forensics replay --precision_config "$1" --device cuda \
        --trajectories_dir $records/frozen --output_dir "$records/replay/$1"
}

make_records() {
    trap 'exit 130' INT # not on to the next step
    forensics device -k device
    forensics quick --quick
    forensics report
    forensics seed_1 --seed 1 -k 'not conformance'
    step freeze precision-forensics freeze --num_batches 20 --device cuda --resume \
        --output_dir $records/frozen
    replay bf16_pure
    replay fp32_baseline
    step sweep precision-forensics sweep --seeds 0 1 2 --max_steps 150 --device cuda --resume \
        --output_dir $records/sweep
    step benchmarks pytest -m benchmark --gpu --benchmark-json=$records/benchmarks.json

    [ -z "$failed" ] || die "failed:$failed. Their output is in $records/STEP.log.part." \
        "The same command runs these steps again."
    say "done. docs/gpu.md says where the records go."
}

mode=sweep
for argument in "$@"; do
    case $argument in
        --quick | --records) mode=${argument#--} ;;
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
[ $mode != records ] || check_commit
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
case $mode in
    quick) exec ./setup.sh -- pytest -m forensics --gpu ;;
    records) make_records ;;
    sweep) exec ./setup.sh -- pytest -m sweep --gpu ;;
esac
