{{- define "corral.name" -}}
{{- printf "%s-corral" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "corral.labels" -}}
app.kubernetes.io/name: corral
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "corral.selector" -}}
app.kubernetes.io/name: corral
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "corral.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}

{{- define "corral.database" -}}
- name: CORRAL_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ required "database.existingSecret names the secret with the database's URL" .Values.database.existingSecret }}
      key: {{ .Values.database.key }}
{{- end -}}

{{- define "corral.environment" -}}
- name: CORRAL_CONFIG
  value: /etc/corral/corral.toml
- name: CORRAL_ENGINE
  value: temporal
- name: CORRAL_TEMPORAL_ADDRESS
  value: {{ required "temporal.address is host:port of Temporal's frontend" .Values.temporal.address | quote }}
- name: CORRAL_TEMPORAL_NAMESPACE
  value: {{ .Values.temporal.namespace | quote }}
- name: CORRAL_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
- name: CORRAL_LOG_LEVEL
  value: {{ .Values.log.level | quote }}
{{ include "corral.database" . }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
