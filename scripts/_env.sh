# Sourced by the other scripts. `make_venv EXTRAS` leaves `.venv` with this checkout and the extras in it.
#
# uv does the installing, in a fraction of pip's time; where it cannot (no wheel for the platform, packages from a mirror
# that only pip is configured for), pip does the same. Both are held to the versions of scripts/constraints.txt.

say() { printf '%s\n' "$*" >&2; }

die() { # die MESSAGE [HINT]
    say "error: $1"
    if [ -n "${2:-}" ]; then say ""; say "hint: $2"; fi
    exit 2
}

explain() { # explain "$@": with --help the script's own words, before anything is installed; where tau2rl is, what follows asks it
    case "${1:-}" in -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "scripts/${0##*/}" ;; *) return 1 ;; esac
}

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if recent "$candidate"; then printf '%s\n' "$candidate"; return; fi
    done
    die "no Python 3.11 or newer on this machine" "name one: PYTHON=/path/to/python3 $0"
}

ticking() { # ticking COMMAND...: how long it takes so far, in one line of a terminal that goes when it ends
    if ! [ -t 2 ]; then "$@"; return; fi
    local began=$SECONDS ticker status=0
    while kill -0 $$ 2>/dev/null; do printf '\r  %s s ' "$((SECONDS - began))" >&2; sleep 1; done &
    ticker=$!
    "$@" || status=$?
    kill "$ticker" && wait "$ticker" 2>/dev/null || true
    printf '\r\033[K' >&2
    return "$status"
}

make_venv() { # make_venv EXTRAS, in the repository's root; extras that another script installed stay
    local extras=$1 python=.venv/bin/python started=$SECONDS mark base
    # A virtual environment that was moved or copied still runs its programs from where it was.
    if ! recent "$python" || ! grep -qsF "$(pwd -P)/.venv/bin/python" .venv/bin/pip; then
        base=$(find_python) || exit
        ticking "$base" -m venv --clear .venv || die "cannot make a virtual environment" "on Debian and Ubuntu: apt install python3-venv"
    fi
    mark=.venv/installed-$(cat pyproject.toml scripts/constraints.txt | cksum | tr ' ' -) # an extra a line
    if [ -e "$mark" ] && ! tr , '\n' <<<"$extras" | grep -qvxFf "$mark"; then return; fi

    say "installing .[$extras] into .venv"
    local pip=(ticking "$python" -m pip install --quiet --disable-pip-version-check --constraint scripts/constraints.txt)
    # Which build of torch (CPU, CUDA) is a matter of pip's own configuration, which uv does not read.
    case ",$extras," in *,local,*) "${pip[@]}" torch || die "cannot install torch" "the lines above say why" ;; esac
    # Bytecode is made here, once, and not again by every process of a run.
    if ! "${pip[@]}" uv ||
       ! ticking "$python" -m uv pip install --quiet --python "$python" --compile-bytecode \
            --constraint scripts/constraints.txt --editable ".[$extras]"; then
        say "uv could not install, trying pip"
        "${pip[@]}" --editable ".[$extras]" ||
            die "cannot install .[$extras]" "the lines above say why; PyPI or a mirror of it must be reachable"
    fi
    tr , '\n' <<<"$extras" >>"$mark"
    say "installed in $((SECONDS - started)) s"
}
