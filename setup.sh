#!/usr/bin/env bash
# Install the suite and, if asked, run a command in its environment. See --help.
set -euo pipefail

usage() {
    cat <<'EOF'
Usage: ./setup.sh [--local] [-- COMMAND [ARGUMENT...]]

Installs rlhf-precision-forensics with its development tools, then runs COMMAND
in the repository root with the environment active and passes its exit code on.
A finished installation is recognised, so that a second call is quick.

  --local     use .venv beside this script and make it if need be
  (without)   use the current environment (containers, GPU pods): a torch or
              transformers that already fits pyproject.toml is kept
  -h, --help  show this text

Environment:
  PYTHON      the Python (3.11 or newer) to use, default: python3
  PIP_*       pip's own settings, such as where packages come from

Examples:
  ./setup.sh --local                    # then: source .venv/bin/activate
  ./setup.sh --local -- pytest          # run the test suite
  PYTHON=python3.12 ./setup.sh --local
  ./setup.sh -- pytest -m forensics --gpu
EOF
}

say() { printf 'setup.sh: %s\n' "$*" >&2; } # stdout belongs to COMMAND
die() {
    say "$*"
    exit 1
}

mode=current
while [ $# -gt 0 ]; do
    case $1 in
        --local) mode=local ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        *)
            say "unknown argument '$1' (a command goes after --)"
            usage >&2
            exit 2
            ;;
    esac
    shift
done

case ${PYTHON:-} in
    /* | '') ;;
    */*) PYTHON=$PWD/$PYTHON ;; # still the same file after the cd
esac
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
cd -- "$root"

# Print the version of interpreter $1; fail if it does not run or is too old.
python_version() {
    "$1" -c 'import sys
print("%d.%d.%d" % sys.version_info[:3])
sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Set `python` and `version` to the first interpreter that will do.
find_python() {
    local candidate found=''
    local -x PATH=${PATH//"$root/.venv/bin:"/} # .venv may be about to be replaced
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.12 python3.11 python3.13
    fi
    for candidate in "$@"; do
        if version=$(python_version "$candidate"); then
            python=$(command -v "$candidate")
            return
        fi
        [ -z "$version" ] || found="$found$candidate is $version, "
    done
    if [ -n "$found" ]; then
        die "Python 3.11 or newer is needed, but ${found%, }." \
            "Install a newer one or name it: PYTHON=/path/to/python3.12 ./setup.sh ..."
    elif [ -n "${PYTHON:-}" ]; then
        die "PYTHON is '$PYTHON', which does not run." \
            "Set it to a Python 3.11 or newer, or unset it to use python3."
    fi
    die "no working python3 on PATH." \
        "Install Python 3.11 or newer, or name it: PYTHON=/path/to/python3.12 ./setup.sh ..."
}

# What a finished installation depends on; $1 is the version of its Python.
place() { printf 'checkout=%s\npython=%s\n' "$root" "$1"; }
files() { printf 'files=%s\n' "$(cat pyproject.toml constraints.txt | cksum)"; }

# Install with interpreter $1 under constraints file $2.
pip_install() {
    local status=0
    say "installing packages with pip (minutes, if torch has to be downloaded) ..."
    "$1" -m pip install --quiet --no-input --disable-pip-version-check \
        --root-user-action=ignore -c "$2" -e '.[dev]' >&2 || status=$?
    [ $status -eq 0 ] || say "pip could not install the packages: it ended with exit code" \
        "$status, its message is above. Check the network and pip's settings" \
        "('$1 -m pip config list'), then run the same command again."
    return $status
}

setup_local() {
    local venv=$root/.venv python version stamp have key
    stamp=$venv/.setup-stamp
    if [ -d "$venv" ] && [ ! -f "$stamp" ]; then
        [ ! -e "$venv.old" ] || die "'$venv' was not made by setup.sh, and '$venv.old'" \
            "is there already: remove one of them."
        mv -- "$venv" "$venv.old"
        printf '*\n' >"$venv.old/.gitignore"
        say "'$venv' was not made by setup.sh: moved it to '$venv.old'"
    fi

    have=$(cat "$stamp" 2>/dev/null) || have=''
    version=$(python_version "$venv/bin/python") || version='none that runs'
    if [ -n "${PYTHON:-}" ] && [ "$(python_version "$PYTHON")" != "$version" ]; then
        version="not that of PYTHON=$PYTHON"
    fi
    key=$(place "$version" && files)
    case $have in
        "$key") ;;
        "$(place "$version")"$'\n'*)
            say "pyproject.toml or constraints.txt changed: updating .venv"
            echo unfinished >"$stamp"
            pip_install "$venv/bin/python" constraints.txt || {
                printf '%s\n' "$have" >"$stamp" # pip left the old packages in place
                exit 1
            }
            printf '%s\n' "$key" >"$stamp"
            ;;
        *)
            find_python
            "$python" -c 'import ensurepip, venv' 2>/dev/null ||
                die "'$python' (Python $version) cannot make virtual environments: its venv" \
                    "or ensurepip module is missing. On Debian and Ubuntu:" \
                    "apt install python${version%.*}-venv"
            say "making .venv with '$python' (Python $version)"
            [ -z "$have" ] || say "replacing the old .venv, whose stamp says: ${have//$'\n'/, }"
            rm -rf -- "$venv"
            mkdir -- "$venv"
            echo unfinished >"$stamp"
            "$python" -m venv "$venv" >&2 ||
                die "'$python -m venv' failed in '$venv', its message is above."
            pip_install "$venv/bin/python" constraints.txt || exit 1
            { place "$version" && files; } >"$stamp"
            ;;
    esac
    unset PYTHONHOME
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}

# Print constraints.txt for interpreter $1 as it is, except that a torch or transformers
# that fits pyproject.toml stays, and with it the versions of what it requires.
constraints_for() {
    "$1" - <<'EOF'
import importlib
import importlib.metadata as metadata
import sys
import tomllib
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
lines = {}
for line in Path("constraints.txt").read_text().split("\n"):
    line = line.partition("#")[0].strip()
    if line:
        lines[canonicalize_name(Requirement(line).name)] = line
for requirement in map(Requirement, project["dependencies"]):
    name = requirement.name
    if name not in ("torch", "transformers"):
        continue
    try:
        importlib.import_module(name)
        version = metadata.version(name)
    except Exception:  # not there, or there and broken
        continue
    if not requirement.specifier.contains(version, prereleases=True):
        print(f"setup.sh: replacing {name} {version} by {lines.get(name, name)}, "
              f"since pyproject.toml asks for {requirement}", file=sys.stderr)
        continue
    print(f"setup.sh: keeping the installed {name} {version}", file=sys.stderr)
    lines[name] = f"{name}=={version}"
    for needed in map(Requirement, metadata.requires(name) or ()):
        optional = needed.marker and not needed.marker.evaluate({"extra": ""})
        if not optional and needed.name not in ("torch", "transformers"):
            lines.pop(canonicalize_name(needed.name), None)
print(*lines.values(), sep="\n")
EOF
}

# Print a checksum of all that is installed for interpreter $1.
packages() {
    "$1" -c 'from importlib.metadata import distributions
print(sorted(f"{d.name}=={d.version}" for d in distributions()))' | cksum
}

setup_current() {
    local python version stamp constraints
    find_python
    stamp=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    stamp=$stamp/rlhf-precision-forensics.setup-stamp
    if [ "$(cat "$stamp" 2>/dev/null)" != "$(place "$version" && files && packages "$python")" ]; then
        "$python" -m pip --version >/dev/null 2>&1 ||
            die "'$python' (Python $version) has no pip. Install it" \
                "('$python -m ensurepip', or apt install python3-pip), or use ./setup.sh --local"
        if "$python" -c 'import os, sys, sysconfig
stdlib = sysconfig.get_path("stdlib", sysconfig.get_default_scheme())
marker = os.path.join(stdlib, "EXTERNALLY-MANAGED")
sys.exit(sys.prefix != sys.base_prefix or not os.path.exists(marker))' &&
            ! "$python" -m pip config list | grep -Eqi "break-system-packages='(1|y|yes|t|true|on)'"; then
            die "'$python' (Python $version) is managed by the operating system (PEP 668), so pip" \
                "may not install into it. Use ./setup.sh --local, or, in a container that you can" \
                "throw away, PIP_BREAK_SYSTEM_PACKAGES=1 ./setup.sh"
        fi
        constraints=$(mktemp)
        # shellcheck disable=SC2064  # the name is fixed now
        trap "rm -f -- '$constraints'" EXIT
        constraints_for "$python" >"$constraints"
        pip_install "$python" "$constraints" || exit 1
        rm -f -- "$constraints"
        { place "$version" && files && packages "$python"; } 2>/dev/null >"$stamp" || true
    fi
    PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
    export PATH
}

# One installation at a time. pip inherits the lock, so it also outlasts a killed setup.sh.
if command -v flock >/dev/null; then
    exec 9<setup.sh
    flock -w 2 9 2>/dev/null || [ $? -ne 1 ] || {
        say "another setup.sh is installing here: waiting for it"
        flock 9
    }
fi
if [ "$mode" = local ]; then
    setup_local
    ready="ready. To activate: source '$VIRTUAL_ENV/bin/activate'"
else
    setup_current
    ready='ready.'
fi
exec 9<&-

[ $# -eq 0 ] || exec "$@"
say "$ready"
