# Set-up that the scripts beside this file share. To be sourced by bash; leaves the caller in the
# checkout, and `set_up` leaves a virtual environment in .venv.
#
# PYTHON names the interpreter to make it with; else the first of python3, python3.14 to python3.11
# that is new enough.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=$PWD/.venv
in_venv=$venv/bin/python

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }
can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

apt_install() {
    say "installing $* with apt-get"
    {
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" ||
            { apt-get update -qq &&
                DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; }
    } >&2
}

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    die "no Python 3.11 or newer on PATH (PYTHON=/path/to/python names another)"
}

has_pip() { "$in_venv" -m pip --version >/dev/null 2>&1; }

# Debian keeps ensurepip, without which venv gives no pip, in python3-venv. The pip of the system
# can install into the environment as well (pip 22.3 on), so that comes before packages.
make_venv() {
    local python
    has_pip && return
    python=$(find_python)
    rm -rf "$venv"
    "$python" -m venv "$venv" >/dev/null 2>&1 && has_pip && return
    rm -rf "$venv"
    if "$python" -m venv --without-pip "$venv" >/dev/null 2>&1; then
        "$python" -m pip --python "$in_venv" install -q pip >&2 && has_pip && return
    fi
    rm -rf "$venv"
    "$python" -m virtualenv -q "$venv" >/dev/null 2>&1 && has_pip && return
    rm -rf "$venv"
    if can_apt && apt_install python3-venv && "$python" -m venv "$venv" >&2 && has_pip; then
        return
    fi
    rm -rf "$venv"
    die "cannot make a virtual environment; install python3-venv (Debian, Ubuntu) or virtualenv"
}

# set_up [EXTRA]: vmstream as an editable install, with the packages of that extra.
set_up() {
    local extra=${1:-} stamp want
    make_venv
    stamp=$venv/.installed${extra:+-$extra}
    want=$(printf '%s\n' "$PWD" "$("$in_venv" -V)" && sha256sum pyproject.toml)
    [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
    say "installing vmstream${extra:+ and what '$extra' needs} into .venv"
    "$in_venv" -m pip install -q --disable-pip-version-check -e ".${extra:+[$extra]}" >&2 ||
        die "pip could not install vmstream"
    printf '%s\n' "$want" >"$stamp"
}
