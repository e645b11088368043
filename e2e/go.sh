# For the scripts beside it that build programs from their published Go modules; sourced, with the directory they go to as $1.

# What may take this long hangs: a module proxy that does not answer.
patience_s=1800
dir=$1

# Ends the script when these versions are there; prepares to build them otherwise. Arguments: the stamp's file, the versions.
begin() {
    stamp=$dir/$1 versions=$2
    [ "$(cat "$stamp" 2>/dev/null)" != "$versions" ] || exit 0
    command -v go >/dev/null 2>&1 || {
        echo "e2e/$(basename "$0"): no go on PATH" >&2
        exit 1
    }
    mkdir -p "$dir"
    # The Go that is there, and no C compiler.
    export GOTOOLCHAIN=local CGO_ENABLED=0 GOBIN="$dir"
}

bounded_go() {
    timeout "$patience_s" go "$@"
}

# All of them are there.
finish() {
    echo "$versions" >"$stamp"
}
