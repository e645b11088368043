#!/bin/sh
# Builds Kubernetes and what installs charts on it from their published Go modules: control plane, kubelet, kube-proxy and kubectl,
# helm, and kubeconform with what this Kubernetes says of its API. A quarter of an hour the first time on two cores; nothing when they
# are there. Needs Go 1.26 or later.
# Argument: the directory they go to.
set -eu
. "$(dirname "$0")/go.sh"

# Later ones may refuse a machine with cgroup v1.
kubernetes=v1.33.13
helm=v3.22.0
kubeconform=v0.8.0
begin kubernetes-versions "kubernetes $kubernetes, helm $helm, kubeconform $kubeconform"
minor=${kubernetes#v1.}
minor=${minor%%.*}

# k8s.io/kubernetes replaces its own parts by directories of its repository, so it can only be built as a dependency: of a module
# that requires what it requires and replaces those parts by their published versions.
module=$dir/kubernetes-module
mkdir -p "$module"
cd "$module"
echo 'module shoal.test/kubernetes' >go.mod
bounded_go mod download "k8s.io/kubernetes@$kubernetes"
source=$(go list -m -f '{{.Dir}}' "k8s.io/kubernetes@$kubernetes")
{
    echo 'module shoal.test/kubernetes'
    sed -n '/^go [0-9]/p; /^godebug/p' "$source/go.mod"
    echo "require k8s.io/kubernetes $kubernetes"
    sed -n '/^require (/,/^)/p' "$source/go.mod"
    sed -n '/^replace (/,/^)/p' "$source/go.mod" |
        sed "s#=> ./staging/src/\(k8s.io/[a-z-]*\)#=> \1 v0.${kubernetes#v1.}#; /sample-/d"
} >go.mod
stamps="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    stamps="$stamps -X $package.gitVersion=$kubernetes -X $package.gitMajor=1 -X $package.gitMinor=$minor"
done
# One after the other, so that memory holds one at a time.
for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
    bounded_go build -mod=mod -trimpath -ldflags "$stamps" -o "$dir/" "k8s.io/kubernetes/cmd/$program"
done
# kubeconform's schemas are made of this.
install -m 644 "$source/api/openapi-spec/swagger.json" "$dir/kubernetes-swagger.json"

cd "$dir"
# Without these, helm takes the cluster for one of another version.
stamps="-s -w -X helm.sh/helm/v3/internal/version.version=$helm"
stamps="$stamps -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=$minor"
bounded_go install -ldflags "$stamps" "helm.sh/helm/v3/cmd/helm@$helm"
bounded_go install -ldflags '-s -w' "github.com/yannh/kubeconform/cmd/kubeconform@$kubeconform"
finish
