{{- define "headwater.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "headwater.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "headwater.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "headwater.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "headwater.selector" -}}
app.kubernetes.io/name: {{ include "headwater.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "headwater.labels" -}}
{{ include "headwater.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "headwater.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The addresses of the roots' pods, one by one: behind one address, nodes that differ could not be told apart. */}}
{{- define "headwater.roots" -}}
{{- $name := printf "%s-roots" (include "headwater.fullname" .) }}
{{- $addresses := list }}
{{- range $i := until (int .Values.roots.replicas) }}
{{- $addresses = append $addresses (printf "ws://%s-%d.%s:9546/$(EDGE_KEY)" $name $i $name) }}
{{- end }}
{{- join "," $addresses }}
{{- end }}

{{/* The pod of an edge or a root: a list of the context, "edge" or "root", and resources. */}}
{{- define "headwater.pod" -}}
{{- $ := index . 0 }}
{{- $role := index . 1 }}
{{- $resources := index . 2 }}
{{- $isEdgeOfRoots := and (eq $role "edge") $.Values.roots.enabled }}
{{- $isPublic := eq $role "edge" }}
metadata:
  labels:
    {{- include "headwater.selector" $ | nindent 4 }}
    app.kubernetes.io/component: {{ $role }}
    {{- with $.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or $.Values.restartOnConfigChange $.Values.podAnnotations }}
  annotations:
    {{- if $.Values.restartOnConfigChange }}
    checksum/config: {{ $.Values.config | sha256sum }}
    {{- end }}
    {{- with $.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  serviceAccountName: {{ include "headwater.fullname" $ }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  # The delay, the drain, and some time to end.
  terminationGracePeriodSeconds: {{ add $.Values.drain.delaySeconds $.Values.drain.graceSeconds 10 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    seccompProfile: { type: RuntimeDefault }
  containers:
    - name: headwater
      image: {{ include "headwater.image" $ | quote }}
      imagePullPolicy: {{ $.Values.image.pullPolicy }}
      args: ["--config", "/etc/headwater/headwater.toml"]
      env:
        {{- if $isEdgeOfRoots }}
        # Kubernetes puts the key into the addresses that follow.
        - name: EDGE_KEY
          valueFrom:
            secretKeyRef: { name: {{ $.Values.roots.edgeKey.name }}, key: {{ $.Values.roots.edgeKey.key }} }
        - name: HEADWATER_UPSTREAM
          value: {{ include "headwater.roots" $ | quote }}
        {{- else if $.Values.upstreamsSecret.name }}
        - name: HEADWATER_UPSTREAM
          valueFrom:
            secretKeyRef: { name: {{ $.Values.upstreamsSecret.name }}, key: {{ $.Values.upstreamsSecret.key }} }
        {{- else if $.Values.upstreams }}
        - name: HEADWATER_UPSTREAM
          value: {{ join "," $.Values.upstreams | quote }}
        {{- end }}
        - name: HEADWATER_SHUTDOWN_GRACE
          value: {{ printf "%ds" (int $.Values.drain.graceSeconds) | quote }}
        {{- if $.Values.secrets.adminToken.name }}
        - name: HEADWATER_ADMIN_TOKEN_FILE
          value: /secrets/admin/token
        {{- end }}
        {{- if $.Values.secrets.fleet.name }}
        - name: HEADWATER_FLEET_SECRET_FILE
          value: /secrets/fleet/secret
        {{- end }}
        {{- if $isPublic }}
        {{- if $.Values.secrets.jwtSecret.name }}
        - name: HEADWATER_AUTH_JWT_SECRET_FILE
          value: /secrets/jwt/secret
        {{- end }}
        {{- if $.Values.secrets.jwks.name }}
        - name: HEADWATER_AUTH_JWKS_FILE
          value: /secrets/jwks/jwks.json
        {{- end }}
        {{- if $.Values.secrets.tls.name }}
        - name: HEADWATER_TLS_CERTIFICATE
          value: /secrets/tls/tls.crt
        - name: HEADWATER_TLS_KEY
          value: /secrets/tls/tls.key
        {{- end }}
        {{- with $.Values.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- end }}
      ports:
        - { name: rpc, containerPort: 9546 }
        - { name: admin, containerPort: 9547 }
      # Listening takes milliseconds; a pod that is not ready, such as before its node is, must not be restarted for it.
      startupProbe:
        httpGet: { path: /health, port: admin }
        periodSeconds: 1
        failureThreshold: 30
      livenessProbe:
        httpGet: { path: /health, port: admin }
        periodSeconds: 10
        timeoutSeconds: 3
        failureThreshold: 3
      readinessProbe:
        httpGet: { path: /ready, port: admin }
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      lifecycle:
        # SIGTERM closes clients, which reconnect at once: by then no endpoint may name this pod.
        preStop:
          sleep: { seconds: {{ $.Values.drain.delaySeconds }} }
      resources:
        {{- toYaml $resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: { drop: [ALL] }
      volumeMounts:
        # A folder, not one file by subPath: that would never see a change.
        - { name: config, mountPath: /etc/headwater, readOnly: true }
        {{- if $.Values.secrets.adminToken.name }}
        - { name: admin-token, mountPath: /secrets/admin, readOnly: true }
        {{- end }}
        {{- if $.Values.secrets.fleet.name }}
        - { name: fleet, mountPath: /secrets/fleet, readOnly: true }
        {{- end }}
        {{- if $isPublic }}
        {{- if $.Values.secrets.jwtSecret.name }}
        - { name: jwt-secret, mountPath: /secrets/jwt, readOnly: true }
        {{- end }}
        {{- if $.Values.secrets.jwks.name }}
        - { name: jwks, mountPath: /secrets/jwks, readOnly: true }
        {{- end }}
        {{- if $.Values.secrets.tls.name }}
        - { name: tls, mountPath: /secrets/tls, readOnly: true }
        {{- end }}
        {{- end }}
  volumes:
    - name: config
      configMap: { name: {{ include "headwater.fullname" $ }}{{ if not $isPublic }}-roots{{ end }} }
    {{- with $.Values.secrets.adminToken }}
    {{- if .name }}
    - name: admin-token
      secret: { secretName: {{ .name }}, defaultMode: 0440, items: [{ key: {{ .key }}, path: token }] }
    {{- end }}
    {{- end }}
    {{- with $.Values.secrets.fleet }}
    {{- if .name }}
    - name: fleet
      secret: { secretName: {{ .name }}, defaultMode: 0440, items: [{ key: {{ .key }}, path: secret }] }
    {{- end }}
    {{- end }}
    {{- if $isPublic }}
    {{- with $.Values.secrets.jwtSecret }}
    {{- if .name }}
    - name: jwt-secret
      secret: { secretName: {{ .name }}, defaultMode: 0440, items: [{ key: {{ .key }}, path: secret }] }
    {{- end }}
    {{- end }}
    {{- with $.Values.secrets.jwks }}
    {{- if .name }}
    - name: jwks
      secret: { secretName: {{ .name }}, defaultMode: 0440, items: [{ key: {{ .key }}, path: jwks.json }] }
    {{- end }}
    {{- end }}
    {{- if $.Values.secrets.tls.name }}
    - name: tls
      secret: { secretName: {{ $.Values.secrets.tls.name }}, defaultMode: 0440 }
    {{- end }}
    {{- end }}
  {{- with $.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if $.Values.topologySpreadConstraints }}
    {{- toYaml $.Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "headwater.selector" $ | nindent 10 }}
          app.kubernetes.io/component: {{ $role }}
    {{- end }}
{{- end }}
