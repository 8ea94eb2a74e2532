# Sourced when a dyno starts: starts the tunnel, and waits until it is ready. The dyno's process starts
# in any case, and the tunnel ends when it has ended.
export PATH="$HOME/.memtunnel/bin:$PATH"
if [ -z "${MEMTUNNEL_CA_FILE-}" ] && [ -f "$HOME/.memtunnel/ca.pem" ]; then
    export MEMTUNNEL_CA_FILE="$HOME/.memtunnel/ca.pem"
fi
# The platform ends everything 30 seconds after it has asked everything to end.
MEMTUNNEL_DRAIN_TIMEOUT="${MEMTUNNEL_DRAIN_TIMEOUT:-25}" memtunnel start "--exit-with-pid=$$" ||
    echo "memtunnel: the dyno starts all the same" >&2
