{{/* JSON's strings and lists of strings are TOML's too. */}}
{{- define "shoal.toml" -}}
{{- $values := .Values -}}
{{- range $key, $value := dict "upload_rate" $values.uploadRate "download_rate" $values.downloadRate "store_max" $values.storeMax "allow" $values.allow "deny" $values.deny "background" $values.background "offline" $values.offline -}}
{{- if $value }}
{{ $key }} = {{ toJson $value }}
{{- end -}}
{{- end }}
private_images = {{ toJson $values.privateImages }}
{{- if $values.pullSecret }}
docker_config = "/etc/shoal/pull-secret.json"
{{- end }}
{{- range $name, $registry := $values.registries }}
{{- $registry = $registry | default dict }}
{{- $directory := printf "/etc/shoal/%s" (include "shoal.directory" $name) }}

[registries.{{ toJson $name }}]
{{- with $registry.url }}
url = {{ toJson . }}
{{- end }}
{{- if $registry.plainHttp }}
plain_http = true
{{- end }}
{{- with $registry.mirrors }}
mirrors = {{ toJson . }}
{{- end }}
{{- with $registry.remap }}
remap = { {{- range $index, $from := keys . | sortAlpha }}{{ if $index }},{{ end }} {{ toJson $from }} = {{ toJson (get $registry.remap $from) }}{{ end }} }
{{- end }}
{{- if $registry.ca }}
ca_file = "{{ $directory }}/ca.crt"
{{- end }}
{{- if $registry.clientCertificate }}
client_cert_file = "{{ $directory }}/tls.crt"
client_key_file = "{{ $directory }}/tls.key"
{{- end }}
{{- if $registry.credentials }}
credentials_file = "{{ $directory }}/credentials.json"
{{- end }}
{{- end }}
{{- end -}}

{{/* The directory of a registry's files. */}}
{{- define "shoal.directory" -}}
registries/{{ . | replace ":" "_" }}
{{- end -}}

{{/* /etc/shoal: the configuration, and what it names of Secrets and ConfigMaps. One volume, so that what rotates is seen. */}}
{{- define "shoal.etc" -}}
name: etc
projected:
  sources:
    - configMap: {name: {{ include "shoal.fullname" . }}}
    {{- with .Values.pullSecret }}
    - secret: {name: {{ . }}, items: [{key: .dockerconfigjson, path: pull-secret.json}]}
    {{- end }}
    {{- range $name, $registry := .Values.registries }}
    {{- $registry = $registry | default dict }}
    {{- $directory := include "shoal.directory" $name }}
    {{- range $kind, $source := $registry.ca }}
    - {{ $kind }}: {name: {{ $source }}, items: [{key: ca.crt, path: {{ $directory }}/ca.crt}]}
    {{- end }}
    {{- with $registry.clientCertificate }}
    - secret: {name: {{ . }}, items: [{key: tls.crt, path: {{ $directory }}/tls.crt}, {key: tls.key, path: {{ $directory }}/tls.key}]}
    {{- end }}
    {{- with $registry.credentials }}
    - secret: {name: {{ . }}, items: [{key: .dockerconfigjson, path: {{ $directory }}/credentials.json}]}
    {{- end }}
    {{- end }}
{{- end -}}
