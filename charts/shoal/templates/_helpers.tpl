{{- define "shoal.fullname" -}}
{{- if contains "shoal" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-shoal" (.Release.Name | trunc 44 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* What tells a part's pods from all others: (list . "agent"). */}}
{{- define "shoal.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: shoal
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* The labels of every object: (list . "agent"). */}}
{{- define "shoal.labels" -}}
{{- $root := index . 0 -}}
{{ include "shoal.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: shoal
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end -}}

{{- define "shoal.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
image: {{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ $tag }}{{ end }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end -}}

{{- define "shoal.pull" -}}
[{{ range $index, $name := .Values.imagePullSecrets }}{{ if $index }}, {{ end }}{name: {{ $name }}}{{ end }}]
{{- end -}}

{{- define "shoal.log" -}}
- {name: SHOAL_LOG, value: {{ .Values.log.filter | quote }}}
- {name: SHOAL_LOG_FORMAT, value: {{ .Values.log.format }}}
{{- end -}}

{{/* A part's certificates, where it has any: the flag, the mount, and the volume: (list . "agent"). */}}
{{- define "shoal.tls.flag" -}}
{{- if ne .Values.tls.certificates "none" -}}
- --certificates=/etc/shoal-tls
{{- end -}}
{{- end -}}

{{- define "shoal.tls.mount" -}}
{{- if ne .Values.tls.certificates "none" -}}
- {name: tls, mountPath: /etc/shoal-tls, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "shoal.tls.volume" -}}
{{- if ne (index . 0).Values.tls.certificates "none" -}}
- name: tls
  secret: {secretName: {{ include "shoal.fullname" (index . 0) }}-{{ index . 1 }}-tls, defaultMode: 0440}
{{- end -}}
{{- end -}}

{{/* The node a pod runs on: the program reads zone, rack and address from it. */}}
{{- define "shoal.node" -}}
- name: SHOAL_NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end -}}

{{/* A pod that needs no right of root. */}}
{{- define "shoal.nonroot" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "shoal.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Root, to write what is root's on the node; without capabilities it passes no permissions. (list "CHOWN") adds one. */}}
{{- define "shoal.root" -}}
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]{{ with . }}, add: {{ toJson . }}{{ end }}}
{{- end -}}

{{/* Liveness asks only whether the program answers: never for peers, trackers, origins or registries. */}}
{{- define "shoal.probes" -}}
# The store is opened first; one of millions of pieces takes a while.
startupProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 2
  failureThreshold: 150
livenessProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
  timeoutSeconds: 3
{{- end -}}

{{/* Where no DaemonSet can run a pod that needs the node. */}}
{{- define "shoal.realNodes" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchExpressions:
          - {key: kubernetes.io/os, operator: In, values: [linux]}
          - {key: eks.amazonaws.com/compute-type, operator: NotIn, values: [fargate]}
          - {key: type, operator: NotIn, values: [virtual-kubelet]}
{{- end -}}

{{/* Replicas of a part on different nodes and in different zones, where there are several: (list . "origin"). */}}
{{- define "shoal.spread" -}}
{{- $selector := include "shoal.selector" . }}
affinity:
  podAntiAffinity:
    # No topologySpreadConstraints: of several that may be broken, the scheduler heeds none on nodes without the label of one,
    # as nodes without zones are.
    preferredDuringSchedulingIgnoredDuringExecution:
      {{- range $key, $weight := dict "kubernetes.io/hostname" 100 "topology.kubernetes.io/zone" 50 }}
      - weight: {{ $weight }}
        podAffinityTerm:
          topologyKey: {{ $key }}
          labelSelector:
            matchLabels:
              {{- $selector | nindent 14 }}
      {{- end }}
{{- end -}}
