{{/* Names of secrets, and the directory that HEARTH_TLS names. Makes no object: secrets.yaml does. */}}

{{/* "true" when the chart makes the certificates itself. */}}
{{- define "hearth.makesTls" -}}
{{- if .Values.tls.enabled -}}
{{- $given := .Values.tls.existingSecrets -}}
{{- if not (or $given.root $given.worker) -}}true
{{- else if not (and $given.root $given.worker) -}}
{{- fail "tls.existingSecrets: give both root and worker, or neither" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The secret of a role: (list $ "root"). */}}
{{- define "hearth.tlsSecret" -}}
{{- $top := first . -}}
{{- $role := last . -}}
{{- if include "hearth.makesTls" $top -}}
{{ include "hearth.fullname" $top }}-{{ $role }}-tls
{{- else -}}
{{ index $top.Values.tls.existingSecrets $role }}
{{- end -}}
{{- end -}}

{{- define "hearth.apiKeysSecret" -}}
{{ .Values.apiKeys.existingSecret | default (printf "%s-api-keys" (include "hearth.fullname" .)) }}
{{- end -}}

{{- define "hearth.tlsMount" -}}
- name: tls
  mountPath: /etc/hearth/tls
  readOnly: true
{{- end -}}

{{/* The directory that HEARTH_TLS names: (list $ "root"). */}}
{{- define "hearth.tlsVolume" -}}
{{- $top := first . -}}
{{- $role := last . -}}
{{- $token := $top.Values.tls.existingSecrets.token -}}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "hearth.tlsSecret" . }}
          items:
            - {key: ca.crt, path: ca.crt}
            - {key: tls.crt, path: tls.crt}
            - {key: tls.key, path: tls.key}
            {{- if and (ne $role "client") (not $token) }}
            - {key: token, path: token}
            {{- end }}
      {{- if and (ne $role "client") $token }}
      - secret:
          name: {{ $token }}
          items:
            - {key: token, path: token}
      {{- end }}
      # Revoked certificates; read again when the secret is made or changes.
      - secret:
          name: {{ include "hearth.fullname" $top }}-revoked
          optional: true
          items:
            - {key: crl.pem, path: crl.pem}
{{- end -}}
