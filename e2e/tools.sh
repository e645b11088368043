#!/bin/sh
# Builds the clients that Debian lacks, or has too old, from their published Go modules: containerd 2.x with ctr and its shim,
# crane, crictl. Some minutes the first time; nothing when they are there. Needs Go 1.26.8 or later.
# Argument: the directory they go to.
set -eu

containerd=v2.3.7
crane=v0.22.1
crictl=v1.37.0
# What may take this long hangs: a module proxy that does not answer.
patience_s=1800

dir=$1
versions="containerd $containerd, crane $crane, crictl $crictl"
[ "$(cat "$dir/versions" 2>/dev/null)" != "$versions" ] || exit 0
command -v go >/dev/null 2>&1 || {
    echo "e2e/tools.sh: no go on PATH" >&2
    exit 1
}

mkdir -p "$dir"
# The Go that is there, and no C compiler.
export GOTOOLCHAIN=local CGO_ENABLED=0 GOBIN="$dir"
build() {
    timeout "$patience_s" go install -ldflags='-s -w' -tags=no_btrfs,no_devmapper,no_zfs "$@"
}
module=github.com/containerd/containerd/v2/cmd
build "$module/containerd@$containerd" "$module/ctr@$containerd" "$module/containerd-shim-runc-v2@$containerd"
build "github.com/google/go-containerregistry/cmd/crane@$crane"
build "sigs.k8s.io/cri-tools/cmd/crictl@$crictl"
echo "$versions" >"$dir/versions"
