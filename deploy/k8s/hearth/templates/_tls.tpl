{{/* Certificates, join token and API keys: kept from the cluster where they are, made where not.
     Makes no object. */}}

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

{{/* The names that each role answers to. A worker's is the same for all of them: they come and go
     with addresses of their own, and the root asks for this name. */}}
{{- define "hearth.hosts" -}}
{{- $top := first . -}}
{{- $role := last . -}}
{{- $service := include (printf "hearth.%s" $role) $top -}}
{{- $names := list (printf "hearth-%s" $role) "localhost" "127.0.0.1" -}}
{{- if eq $role "root" -}}
{{- $ns := $top.Release.Namespace -}}
{{- $names = concat $names (list $service (printf "%s.%s" $service $ns) (printf "%s.%s.svc" $service $ns)) $top.Values.tls.hosts -}}
{{- end -}}
{{- join "," (uniq $names) -}}
{{- end -}}
{{- define "hearth.client" -}}{{ include "hearth.fullname" . }}-client{{- end -}}

{{/* Fills .Values.material once for all templates, since each call would make other keys: a dict of
     ca, root, worker, client (each a Secret's data) and of hosts (role -> what its certificate is for).

     A certificate is kept as long as the authority is that of the cluster and its names and days are
     those asked for: an upgrade changes nothing, and a new host changes one certificate and restarts
     one pod. */}}
{{- define "hearth.material" -}}
{{- if not (hasKey .Values "material") -}}
{{- $top := . -}}
{{- $days := int .Values.tls.days -}}
{{- $full := include "hearth.fullname" . -}}
{{- $oldCa := (lookup "v1" "Secret" .Release.Namespace (printf "%s-ca" $full)).data | default dict -}}
{{- $known := and (hasKey $oldCa "ca.crt") (hasKey $oldCa "ca.key") -}}
{{- $ca := dict -}}
{{- if $known -}}
{{- $ca = buildCustomCert (index $oldCa "ca.crt") (index $oldCa "ca.key") -}}
{{- else -}}
{{- $ca = genCA (printf "%s-ca" $full) $days -}}
{{- end -}}
{{- $olds := dict -}}
{{- $token := "" -}}
{{- range $role := list "root" "worker" "client" -}}
{{- $old := lookup "v1" "Secret" $top.Release.Namespace (include "hearth.tlsSecret" (list $top $role)) -}}
{{- $_ := set $olds $role $old -}}
{{- $token = $token | default (index ($old.data | default dict) "token") -}}
{{- end -}}
{{- $token = $token | default (randAlphaNum 48 | b64enc) -}}
{{- $material := dict "hosts" dict "ca" (dict "ca.crt" ($ca.Cert | b64enc) "ca.key" ($ca.Key | b64enc)) -}}
{{- range $role := list "root" "worker" "client" -}}
{{- $hosts := include "hearth.hosts" (list $top $role) -}}
{{- $mark := printf "%s %d" $hosts $days | sha256sum | trunc 16 -}}
{{- $old := index $olds $role -}}
{{- $data := $old.data | default dict -}}
{{- $marked := index (($old.metadata | default dict).annotations | default dict) "hearth/hosts" -}}
{{- if not (and $known (eq (toString $marked) $mark) (hasKey $data "tls.crt") (hasKey $data "tls.key") (eq (toString (index $data "ca.crt")) ($ca.Cert | b64enc))) -}}
{{- $ips := list -}}
{{- $names := list -}}
{{- range splitList "," $hosts -}}
{{- if or (regexMatch "^[0-9.]+$" .) (contains ":" .) -}}
{{- $ips = append $ips . -}}
{{- else -}}
{{- $names = append $names . -}}
{{- end -}}
{{- end -}}
{{- $made := genSignedCert (printf "hearth-%s" $role) $ips $names $days $ca -}}
{{- $data = dict "tls.crt" ($made.Cert | b64enc) "tls.key" ($made.Key | b64enc) -}}
{{- end -}}
{{- $kept := dict "ca.crt" ($ca.Cert | b64enc) "tls.crt" (index $data "tls.crt") "tls.key" (index $data "tls.key") -}}
{{- if ne $role "client" -}}
{{- $_ := set $kept "token" $token -}}
{{- end -}}
{{- $_ := set $material $role $kept -}}
{{- $_ := set $material.hosts $role $mark -}}
{{- end -}}
{{- $_ := set .Values "material" $material -}}
{{- end -}}
{{- end -}}

{{/* The keys by name, made once like the certificates: .Values.keys, name -> base64. */}}
{{- define "hearth.keys" -}}
{{- if not (hasKey .Values "keys") -}}
{{- $old := (lookup "v1" "Secret" .Release.Namespace (include "hearth.apiKeysSecret" .)).data | default dict -}}
{{- $keys := dict -}}
{{- range .Values.apiKeys.names -}}
{{- $_ := set $keys . (index $old . | default (randAlphaNum 48 | b64enc)) -}}
{{- end -}}
{{- $_ := set .Values "keys" $keys -}}
{{- end -}}
{{- end -}}

{{/* What a role's pods were started with: they are started again when it changes. */}}
{{- define "hearth.checksum" -}}
{{- $top := first . -}}
{{- $role := last . -}}
{{- $seen := list $top.Values.tls.existingSecrets -}}
{{- if include "hearth.makesTls" $top -}}
{{- include "hearth.material" $top -}}
{{- $seen = append $seen (index $top.Values.material $role) -}}
{{- end -}}
{{- if and (eq $role "root") $top.Values.apiKeys.enabled -}}
{{- $seen = append $seen $top.Values.apiKeys.existingSecret -}}
{{- if not $top.Values.apiKeys.existingSecret -}}
{{- include "hearth.keys" $top -}}
{{- $seen = append $seen $top.Values.keys -}}
{{- end -}}
{{- end -}}
{{- toJson $seen | sha256sum -}}
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
{{- end -}}
