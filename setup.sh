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
              another package that already fits pyproject.toml is kept
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
    local candidate tried='' candidates=(python3 python3.13 python3.12 python3.11)
    local -x PATH=${PATH//"$root/.venv/bin:"/} # .venv may be about to be replaced
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if version=$(python_version "$candidate"); then
            python=$(command -v "$candidate")
            return
        fi
        tried="$tried, $candidate (${version:-does not run})"
    done
    die "Python 3.11 or newer is needed. Tried: ${tried#, }." \
        "Install a newer one or name it: PYTHON=/path/to/python3.12 ./setup.sh ..."
}

# Install with interpreter $1 under constraints file $2.
pip_install() {
    say "installing packages with pip (minutes, if torch has to be downloaded) ..."
    "$1" -m pip install --quiet --no-input --disable-pip-version-check \
        --root-user-action=ignore -c "$2" -e '.[dev]' >&2 ||
        die "pip could not install the packages, its message is above. Check the network and pip's" \
            "settings ('$1 -m pip config list'), then run the same command again. Where the system" \
            "manages Python, use ./setup.sh --local, or, in a container that you can throw away," \
            "PIP_BREAK_SYSTEM_PACKAGES=1 ./setup.sh"
}

setup_local() {
    local python version place='' requirements='' venv=$root/.venv
    local stamp=$venv/.setup-stamp
    [ ! -e "$venv" ] || [ -f "$stamp" ] ||
        die "'$venv' was not made by setup.sh. Move or remove it, then run the same command again."
    { read -r place && read -r requirements; } 2>/dev/null <"$stamp" || true
    version=$(python_version "${PYTHON:-$venv/bin/python}") || version=none
    if [ "$place" != "$root, Python $version" ]; then
        find_python
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die "'$python' (Python $version) cannot make virtual environments: its venv" \
                "or ensurepip module is missing. On Debian and Ubuntu:" \
                "apt install python${version%.*}-venv"
        say "making .venv with '$python' (Python $version)${place:+ in place of that of $place}"
        place="$root, Python $version" requirements=''
        rm -rf -- "$venv"
        "$python" -m venv "$venv" >&2 || {
            rm -rf -- "$venv"
            die "'$python -m venv $venv' failed, its message is above."
        }
        printf '%s\n' "$place" >"$stamp"
    fi
    if [ "$requirements" != "$wanted" ]; then
        pip_install "$venv/bin/python" constraints.txt
        printf '%s\n%s\n' "$place" "$wanted" >"$stamp"
    fi
    unset PYTHONHOME
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}

# Print the lines of constraints.txt whose package interpreter $1 does not have, or has in a version
# that pyproject.toml excludes. pip leaves the others as they are; torch is pinned to what it is.
constraints_for() {
    "$1" - <<'EOF'
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

asked = map(Requirement, tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"])
specifiers = {canonicalize_name(requirement.name): requirement.specifier for requirement in asked}
first_on_path_last = reversed(list(metadata.distributions()))
installed = {canonicalize_name(each.name): each.version for each in first_on_path_last}
for line in Path("constraints.txt").read_text().splitlines():
    name = canonicalize_name(Requirement(line).name)
    version = installed.get(name)
    fits = version and specifiers.get(name, Requirement(name).specifier).contains(version, prereleases=True)
    if version and not fits:
        print(f"setup.sh: replacing {name} {version}, since pyproject.toml asks for "
              f"{name}{specifiers[name]}", file=sys.stderr)
    if not fits:
        print(line)
    elif name == "torch":
        print(f"setup.sh: keeping the installed torch {version}", file=sys.stderr)
        print(f"torch=={version}")
EOF
}

setup_current() {
    local python version stamp constraints
    find_python
    stamp=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    stamp=$stamp/rlhf-precision-forensics.setup-stamp
    if [ "$(cat "$stamp" 2>/dev/null)" != "$root $wanted" ]; then
        constraints=$(mktemp)
        # shellcheck disable=SC2064  # the name is fixed now
        trap "rm -f -- '$constraints'" EXIT
        constraints_for "$python" >"$constraints" ||
            die "'$python' (Python $version) has no pip that works. Install it, or use ./setup.sh --local"
        pip_install "$python" "$constraints"
        rm -f -- "$constraints"
        { printf '%s\n' "$root $wanted" >"$stamp"; } 2>/dev/null || true
    fi
    PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
    export PATH
}

wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ "$mode" = local ]; then
    setup_local
    ready="ready. To activate: source '$VIRTUAL_ENV/bin/activate'"
else
    setup_current
    ready='ready.'
fi

[ $# -eq 0 ] || exec "$@"
say "$ready"
