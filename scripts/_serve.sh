# Sourced by the scripts that start a server, from the repository's root: starts, stops and shows it.
#
# It is found again by the number of its process, which is in outputs/servers/NAME.pid; nothing is ever ended by a name.

. scripts/_env.sh

python=${PYTHON:-python3}
servers=outputs/servers

running() { # running NAME: its process, if it is one of ours; a number that was given to another program is not
    local pid
    pid=$(cat "$servers/$1.pid" 2>/dev/null) || return 1
    [ -r "/proc/$pid/cmdline" ] && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q -e launch_server -e llama_cpp.server && printf '%s\n' "$pid"
}

healthy() { # healthy PORT, at the path HEALTH; no proxy stands between a machine and itself
    "$python" -c 'import sys, urllib.request as u
u.build_opener(u.ProxyHandler({})).open(f"http://127.0.0.1:{sys.argv[1]}{sys.argv[2]}", timeout=5)' "$1" "${HEALTH:-/health}" 2>/dev/null
}

start_server() { # start_server NAME PORT SECONDS COMMAND...
    local name=$1 port=$2 seconds=$3 pid started=$SECONDS
    shift 3
    if pid=$(running "$name"); then die "$name runs already, process $pid" "stop it first: $0 stop"; fi
    if healthy "$port"; then die "something answers on port $port already" "choose another one: PORT=30009 $0 ..."; fi
    mkdir -p "$servers"
    # A session of its own: Ctrl-C in this terminal is not meant for it, and `stop` can end all its processes.
    setsid "$@" >"$servers/$name.log" 2>&1 </dev/null &
    pid=$!
    printf '%s\n' "$pid" >"$servers/$name.pid"
    say "$name starts, process $pid, log $servers/$name.log"
    until healthy "$port"; do
        if ! kill -0 "$pid" 2>/dev/null; then
            tail -n 20 "$servers/$name.log" >&2
            rm -f "$servers/$name.pid"
            die "$name ended before it was ready" "its log is $servers/$name.log"
        fi
        if [ $((SECONDS - started)) -ge "$seconds" ]; then
            stop_server "$name"
            die "$name was not ready within $seconds s" "its log is $servers/$name.log; WAIT=1800 waits longer"
        fi
        sleep "${POLL:-2}"
    done
    say "$name is ready on http://127.0.0.1:$port after $((SECONDS - started)) s"
}

stop_server() { # stop_server NAME
    local pid _
    if ! pid=$(running "$1"); then
        say "$1 does not run"
        rm -f "$servers/$1.pid"
        return 0
    fi
    kill -TERM "$pid"
    for _ in $(seq 60); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.5
    done
    kill -KILL -- "-$pid" 2>/dev/null || true  # what is left of its session; usually nothing
    rm -f "$servers/$1.pid"
    say "$1 is stopped"
}

server_status() { # server_status NAME PORT: 0 = ready, 1 = starting or ill, 3 = not there
    local pid
    if ! pid=$(running "$1"); then say "$1 does not run"; return 3; fi
    if healthy "$2"; then say "$1 is ready on http://127.0.0.1:$2, process $pid"; return 0; fi
    say "$1 does not answer yet, process $pid"
    return 1
}
