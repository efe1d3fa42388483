{{/* Labels of everything that there is. */}}
{{- define "outrigger.labels" -}}
app.kubernetes.io/part-of: outrigger
{{- if not .Values.plain }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- end }}

{{/* Namespaces that no webhook may hold up, whatever their labels. */}}
{{- define "outrigger.excluded" -}}
{{ concat (list "kube-system" "kube-public" "kube-node-lease" .Release.Namespace) .Values.webhook.excludedNamespaces | join ", " }}
{{- end }}
