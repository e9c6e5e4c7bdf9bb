{{- define "medsam3.name" -}}
{{- printf "%s-%s" .Release.Name "medsam3" | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "medsam3.labels" -}}
app.kubernetes.io/name: medsam3
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "medsam3.meta" -}}
name: {{ include "medsam3.name" .root }}-{{ .part }}
labels:
  {{- include "medsam3.labels" . | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{- define "medsam3.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "medsam3.name" .) -}}
{{- end -}}

{{- define "medsam3.image" -}}
{{- $image := required (printf "global.image.%s: the image built with `docker build --target %s`" .image .image) (index .root.Values.global.image .image) -}}
image: {{ printf "%s:%s" $image (.root.Values.global.image.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ .root.Values.global.image.pullPolicy }}
{{- end -}}

{{- /* One variable from a Secret that exists; `needed` names the value that has to be given. */ -}}
{{- define "medsam3.secretEnv" -}}
{{- if and .needed (not (and .from.secretName .from.secretKey)) -}}
{{- fail (printf "%s: needs secretName and secretKey of a Secret that exists" .needed) -}}
{{- end -}}
{{- if .from.secretName }}
- name: {{ .name }}
  valueFrom:
    secretKeyRef: {name: {{ .from.secretName | quote }}, key: {{ .from.secretKey | quote }}}
{{- end -}}
{{- end -}}

{{- define "medsam3.env" -}}
{{- $global := .Values.global -}}
{{- $pg := $global.pgConfig -}}
env:
  - name: LABEL_STUDIO_URL
    value: {{ required "global.labelStudioUrl: where pods reach Label Studio" $global.labelStudioUrl | quote }}
  - name: STORAGE_URL
    value: {{ required "global.storageUrl: masks need a place that all pods share, such as s3://bucket/medsam3" $global.storageUrl | quote }}
  - name: MEDSAM3_DATA_DIR
    value: /data
  {{- include "medsam3.secretEnv" (dict "name" "LABEL_STUDIO_API_KEY" "from" $global.labelStudioApiKey "needed" "global.labelStudioApiKey") | nindent 2 }}
  {{- include "medsam3.secretEnv" (dict "name" "MEDSAM3_BASIC_AUTH_PASSWORD" "from" $global.basicAuthPassword "needed" "global.basicAuthPassword") | nindent 2 }}
  {{- include "medsam3.secretEnv" (dict "name" "MEDSAM3_API_TOKEN" "from" $global.apiToken "needed" "global.apiToken") | nindent 2 }}
  {{- include "medsam3.secretEnv" (dict "name" "MEDSAM3_WEBHOOK_SECRET" "from" $global.webhookSecret "needed" "global.webhookSecret") | nindent 2 }}
  {{- include "medsam3.secretEnv" (dict "name" "PG_PASSWORD" "from" $pg.password "needed" "global.pgConfig.password") | nindent 2 }}
  - name: DATABASE_URL
    value: {{ printf "postgresql://%s:$(PG_PASSWORD)@%s:%v/%s" $pg.userName (required "global.pgConfig.host: the external PostgreSQL" $pg.host) $pg.port $pg.dbName | quote }}
  {{- include "medsam3.secretEnv" (dict "name" "REDIS_PASSWORD" "from" $global.redisConfig.password "needed" "") | nindent 2 }}
  - name: REDIS_URL
    value: {{ required "global.redisConfig.host: such as redis://redis:6379/0" $global.redisConfig.host | quote }}
  {{- range $name, $value := $global.extraEnvironmentVars }}
  - name: {{ $name }}
    value: {{ $value | quote }}
  {{- end }}
  {{- range $name, $from := $global.extraEnvironmentSecrets }}
  {{- include "medsam3.secretEnv" (dict "name" $name "from" $from "needed" (printf "global.extraEnvironmentSecrets.%s" $name)) | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* What every pod has: no root, nothing written but /data and /tmp, no token of the cluster. */ -}}
{{- define "medsam3.pod" -}}
serviceAccountName: {{ include "medsam3.serviceAccount" .root }}
automountServiceAccountToken: false
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
volumes:
  - name: data
    emptyDir: {sizeLimit: {{ .cacheSize | default "1Gi" }}}
  - name: tmp
    emptyDir: {sizeLimit: 2Gi}
{{- with .values }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "medsam3.container" -}}
{{- include "medsam3.image" . }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: data, mountPath: /data}
  - {name: tmp, mountPath: /tmp}
{{ include "medsam3.env" .root }}
{{- end -}}

{{- /* A Deployment of workers: `part`, `image`, `command`, `queue` of the health check. */ -}}
{{- define "medsam3.workers" -}}
{{- $values := .values -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "medsam3.meta" . | nindent 2 }}
spec:
  {{- if not .scaled }}
  replicas: {{ $values.replicas }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "medsam3.labels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "medsam3.labels" . | nindent 8 }}
    spec:
      {{- include "medsam3.pod" (dict "root" .root "values" $values "cacheSize" $values.cacheSize) | nindent 6 }}
      terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds | default 60 }}
      containers:
        - name: {{ .part }}
          {{- include "medsam3.container" . | nindent 10 }}
          args: {{ toJson .command }}
          resources:
            requests:
              {{- toYaml $values.resources.requests | nindent 14 }}
            limits:
              {{- toYaml $values.resources.limits | nindent 14 }}
              {{- if $values.gpus }}
              nvidia.com/gpu: {{ $values.gpus }}
              {{- end }}
          {{- $health := list "python" "-m" "backend.processes.health" .queue }}
          # Loading a checkpoint of several gigabytes takes its time.
          startupProbe:
            exec: {command: {{ toJson $health }}}
            periodSeconds: 10
            timeoutSeconds: 10
            failureThreshold: 90
          livenessProbe:
            exec: {command: {{ toJson $health }}}
            periodSeconds: 60
            timeoutSeconds: 15
            failureThreshold: 5
{{- end -}}
