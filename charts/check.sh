#!/bin/sh
# Renders the chart with its defaults, with everything on and with each example of its README, and checks what comes out by lint and,
# where kubeconform is installed, by the schemas of Kubernetes. SCHEMAS names another place for these than kubeconform's own.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

awk -v work="$work" '/^```yaml$/ {file = sprintf("%s/example-%d.yaml", work, ++examples); next} /^```$/ {file = ""} file {print > file}' shoal/README.md
: > "$work/defaults.yaml"
cp shoal/ci/everything-values.yaml "$work/everything.yaml"

for values in "$work"/*.yaml; do
    name=$(basename "$values" .yaml)
    helm lint --strict --quiet shoal --values "$values"
    helm template shoal shoal --namespace shoal --values "$values" > "$work/$name.out"
    echo "$name: $(grep -c '^kind:' "$work/$name.out") objects"
    if command -v kubeconform > /dev/null; then
        # Kinds of the Prometheus operator and of cert-manager have no schema here.
        kubeconform -strict -skip PodMonitor,PrometheusRule,Certificate,Issuer -schema-location "${SCHEMAS:-default}" "$work/$name.out"
    else
        echo "$name: not checked by schema, kubeconform is missing"
    fi
done

if helm template shoal shoal --set agent.prot=1 > "$work/unknown.out" 2>&1; then
    echo "an unknown value was not refused" >&2
    exit 1
fi
grep -q "additional properties 'prot' not allowed" "$work/unknown.out"
