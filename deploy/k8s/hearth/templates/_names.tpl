{{/* Names, labels, ports and the pod settings that root and worker share. Makes no object. */}}

{{/* The release's name, with "hearth" in it once. At most 40: "-worker" and what a StatefulSet
     adds to its pods' labels must fit into 63. */}}
{{- define "hearth.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "hearth" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-hearth" (.Release.Name | trunc 33 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "hearth.root" -}}{{ include "hearth.fullname" . }}-root{{- end -}}
{{- define "hearth.worker" -}}{{ include "hearth.fullname" . }}-worker{{- end -}}

{{/* Of one of several clusters: (list $ 2) gives hearth-2. The first is called as if it were alone, and
     keeps its objects when others come. */}}
{{- define "hearth.cluster" -}}
{{- include "hearth.fullname" (first .) -}}
{{- if gt (int (last .)) 1 -}}-{{ last . }}{{- end -}}
{{- end -}}

{{/* The component of one cluster's pods: (list "worker" 2) gives worker-2, so that each selector
     finds the pods of one cluster. */}}
{{- define "hearth.component" -}}
{{- first . -}}
{{- if gt (int (last .)) 1 -}}-{{ last . }}{{- end -}}
{{- end -}}

{{/* Labels of one cluster's pods beside the selector: (list "worker" 2). What concerns all clusters
     selects by the role. */}}
{{- define "hearth.podLabels" -}}
app.kubernetes.io/component: {{ include "hearth.component" . }}
hearth/role: {{ first . }}
hearth/cluster: {{ last . | quote }}
{{- end -}}

{{/* Of all pods of the release. Selectors cannot be changed later: nothing here may. */}}
{{- define "hearth.selector" -}}
app.kubernetes.io/name: hearth
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Of every object. */}}
{{- define "hearth.labels" -}}
{{ include "hearth.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The label that all root or worker pods have: (list $ "root"). */}}
{{- define "hearth.role" -}}
{{ include "hearth.roleKey" (first .) }}: {{ last . }}
{{- end -}}

{{- define "hearth.roleKey" -}}
{{- ternary "hearth/role" "app.kubernetes.io/component" (gt (int .Values.clusters) 1) -}}
{{- end -}}

{{/* Not empty where KEDA decides whether a cluster runs: (list $ number). */}}
{{- define "hearth.scaled" -}}
{{- $scaling := (first .).Values.autoscaling -}}
{{- if and $scaling.enabled (gt (int (last .)) (int $scaling.minClusters)) -}}yes{{- end -}}
{{- end -}}

{{- define "hearth.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Of a root or a worker: (list $ .Values.worker). With a GPU, the variant that has drivers. */}}
{{- define "hearth.nodeImage" -}}
{{- $top := first . -}}
{{- $image := $top.Values.image -}}
{{- if not (last .).gpu.device -}}
{{ include "hearth.image" $top }}
{{- else if $image.gpu.digest -}}
{{ $image.repository }}@{{ $image.gpu.digest }}
{{- else if and $image.digest (not $image.gpu.tag) -}}
{{- fail "image.gpu: image.digest is of the image without drivers; give image.gpu.digest or image.gpu.tag too" -}}
{{- else -}}
{{ $image.repository }}:{{ $image.gpu.tag | default (printf "%s-vulkan" ($image.tag | default $top.Chart.AppVersion)) }}
{{- end -}}
{{- end -}}

{{/* Of a root's or a worker's container, with its GPU: a device plugin gives it for a limit. */}}
{{- define "hearth.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpu.resource -}}
{{- $limits := merge (dict .gpu.resource .gpu.count) (default dict $resources.limits) -}}
{{- $resources = set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* The ports, as every other text of Hearth has them. */}}
{{- define "hearth.port.root" -}}7716{{- end -}}
{{- define "hearth.port.worker" -}}7717{{- end -}}
{{- define "hearth.port.mesh" -}}7718{{- end -}}
{{- define "hearth.port.health" -}}7719{{- end -}}
{{- define "hearth.port.http" -}}7780{{- end -}}
{{- define "hearth.port.metrics" -}}9716{{- end -}}

{{/* Of a pod: (dict "top" $ "own" .Values.root "drain" seconds). */}}
{{- define "hearth.pod" -}}
{{- $top := .top -}}
{{- $own := .own -}}
# Kubernetes would put HEARTH_..._PORT=tcp://... into the environment for each Service called
# hearth-..., and Hearth reads its options from HEARTH_...: a Service hearth-mesh would set --mesh-port.
enableServiceLinks: false
# Nothing here talks to the API server.
automountServiceAccountToken: false
{{- with $top.Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with $top.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  # New volumes and the keys become readable for the user above, large volumes without a long walk.
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  {{- if not (kindIs "invalid" $own.gpu.group) }}
  supplementalGroups: [{{ $own.gpu.group }}]
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
# What it is given to drain, and time to leave.
terminationGracePeriodSeconds: {{ add (ceil .drain) 15 }}
{{- with $own.gpu.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
nodeSelector:
  kubernetes.io/os: linux
  {{- with $own.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if ne $top.Values.spread "none" }}
# Root and workers count alike: each is a node of the cluster and wants a device of its own.
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: {{ $top.Values.spread }}
    # A device that is tainted away must not count as the one with the fewest pods.
    nodeTaintsPolicy: Honor
    labelSelector:
      matchLabels:
        {{- include "hearth.selector" $top | nindent 8 }}
{{- end }}
{{- end -}}

{{- define "hearth.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Probes, on the port that answers health checks and nothing else. A probe cannot present a
     certificate, which is why that port is plaintext. Patient ones: a small device computing with all
     its cores answers late. */}}
{{- define "hearth.probes" -}}
startupProbe:
  httpGet:
    port: health
    path: /livez
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 90
livenessProbe:
  httpGet:
    port: health
    path: /livez
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet:
    port: health
    path: /readyz
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{/* Options that have a value: (list "--context" value "--lane" value ...). 0 is a value; null and ""
     are none. */}}
{{- define "hearth.options" -}}
{{- range chunk 2 . -}}
{{- $value := last . -}}
{{- if kindIs "float64" $value -}}
{{- /* As any number of a values file arrives; never 1e+06. */ -}}
{{- $value = printf "%.12g" $value -}}
{{- end -}}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- {{ first . }}
- {{ toString $value | quote }}
{{- end }}
{{- end }}
{{- end -}}
