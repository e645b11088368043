#!/bin/sh
# Builds the clients that Debian lacks, or has too old, from their published Go modules: containerd 2.x with ctr and its shim,
# crane, crictl. Some minutes the first time; nothing when they are there. Needs Go 1.26.8 or later.
# Argument: the directory they go to.
set -eu
. "$(dirname "$0")/go.sh"

containerd=v2.3.7
crane=v0.22.1
crictl=v1.37.0
begin versions "containerd $containerd, crane $crane, crictl $crictl"

build() {
    bounded_go install -ldflags='-s -w' -tags=no_btrfs,no_devmapper,no_zfs "$@"
}
module=github.com/containerd/containerd/v2/cmd
build "$module/containerd@$containerd" "$module/ctr@$containerd" "$module/containerd-shim-runc-v2@$containerd"
build "github.com/google/go-containerregistry/cmd/crane@$crane"
build "sigs.k8s.io/cri-tools/cmd/crictl@$crictl"
finish
