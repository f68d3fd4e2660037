{{/* The name of all objects. */}}
{{- define "kube2irsa.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-kube2irsa" .Release.Name) (contains "kube2irsa" .Release.Name) -}}
{{- end -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "kube2irsa.selectorLabels" -}}
app.kubernetes.io/name: kube2irsa
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kube2irsa.labels" -}}
{{ include "kube2irsa.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The user that the daemon is to the API server. */}}
{{- define "kube2irsa.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "kube2irsa.fullname" . }}
{{- end -}}

{{/* node or direct. */}}
{{- define "kube2irsa.tokenAccess" -}}
{{- if ne .Values.tokenAccess "auto" -}}
{{- .Values.tokenAccess -}}
{{- else -}}
{{- ternary "node" "direct" (semverCompare ">=1.36.0-0" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}

{{/* Whether the daemon runs with rights of this mode: (list $ "node"). A daemon that removes has none. */}}
{{- define "kube2irsa.hasAccess" -}}
{{- $root := index . 0 -}}
{{- if and (ne $root.Values.mode "remove") (eq (include "kube2irsa.tokenAccess" $root) (index . 1)) -}}true{{- end -}}
{{- end -}}

{{/* Whether the daemon tells pods on the node's network from the node. */}}
{{- define "kube2irsa.tellsHostPods" -}}
{{- and (eq .Values.mode "run") (ne (index .Values.flags "host-network" | default "off") "off") -}}
{{- end -}}

{{/* The audiences that tokens may have, as JSON. */}}
{{- define "kube2irsa.audiences" -}}
{{- $own := index .Values.flags "token-audience" | default "sts.amazonaws.com" -}}
{{- concat (list $own) .Values.additionalAudiences | uniq | toJson -}}
{{- end -}}

{{/* A value as it was written: a large number without an exponent. */}}
{{- define "kube2irsa.plain" -}}
{{- kindIs "string" . | ternary . (toJson .) -}}
{{- end -}}

{{- define "kube2irsa.subject" -}}
- kind: ServiceAccount
  name: {{ include "kube2irsa.fullname" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}
