#!/bin/sh
# Installs what the end-to-end tests run: container runtimes, Debian's docker-registry and the network tools.
# For root on Debian (or Ubuntu). Quick and silent when nothing is missing; no service of the packages is left running.
# Arguments: more of what is listed below.
set -eu

# command:package, the package that brings each command the tests call.
needs="
dockerd:docker.io
docker:docker.io
containerd:containerd
ctr:containerd
runc:runc
skopeo:skopeo
podman:podman
buildah:buildah
docker-registry:docker-registry
ip:iproute2
tc:iproute2
iptables:iptables
nsenter:util-linux
openssl:openssl
htpasswd:apache2-utils
curl:curl
etcd:etcd-server
prometheus:prometheus
nft:nftables
dnsmasq:dnsmasq-base
/usr/lib/cni/bridge:containernetworking-plugins
"

missing=""
for need in $needs "$@"; do
    command=${need%%:*}
    package=${need##*:}
    PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null 2>&1 || missing="$missing $package"
done
# A statically linked program for the images: "busybox" may exist without being static, so the package is asked for.
dpkg-query -W -f='${Status}' busybox-static 2>/dev/null | grep -q 'ok installed' || missing="$missing busybox-static"

# shellcheck disable=SC2086 # a list of packages, split on purpose
missing=$(printf '%s\n' $missing | sort -u | xargs)
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "e2e/install.sh: missing: $missing; run it as root" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "e2e/install.sh: missing: $missing; only Debian and its kin are known to this script" >&2
    exit 1
fi

# policy-rc.d with exit 101 tells every package's postinst to leave its service alone.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
install_missing() {
    # From Debian 13 on, docker.io only recommends the package of its command line.
    case $missing in
        *docker.io*) ! apt-cache show docker-cli >/dev/null 2>&1 || missing="$missing docker-cli" ;;
    esac
    # shellcheck disable=SC2086 # a list of packages, split on purpose
    apt-get install -y -q --no-install-recommends \
        -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=120 $missing
}
install_missing >/dev/null 2>&1 || {
    apt-get update -q
    install_missing
}
echo "e2e/install.sh: installed $missing"
