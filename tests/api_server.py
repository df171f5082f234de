"""A Kubernetes API server as far as Helm needs one: it stores what it is sent, and runs nothing.

Discovery, create, read, list by labels, replace, server-side apply (the whole object, without
merging owners), delete. Knows the kinds of `KINDS` and answers 404 for any other path. Validates
nothing: that is what kubernetes-validate is for. Plain HTTP on the loopback.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

Object: TypeAlias = dict[str, Any]

# apiVersion -> kind -> plural. All of them live in a namespace.
KINDS = {
    "v1": {
        "ConfigMap": "configmaps",
        "PersistentVolumeClaim": "persistentvolumeclaims",
        "Pod": "pods",
        "Secret": "secrets",
        "Service": "services",
    },
    "inference.networking.k8s.io/v1": {"InferencePool": "inferencepools"},
    "keda.sh/v1alpha1": {"ScaledObject": "scaledobjects"},
    "apps/v1": {"Deployment": "deployments", "StatefulSet": "statefulsets"},
    "monitoring.coreos.com/v1": {
        "PrometheusRule": "prometheusrules",
        "ServiceMonitor": "servicemonitors",
    },
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
}
_VERBS = ["create", "delete", "get", "list", "patch", "update"]


@dataclass(frozen=True)
class Place:
    """A collection, or one object of it."""

    version: str
    kind: str
    namespace: str
    name: str = ""


class ApiServer:
    """Listens from its making until `close`. `objects` is what a cluster would have now."""

    def __init__(self) -> None:
        self._objects: dict[Place, Object] = {}
        self._revision = 0
        self._lock = threading.Lock()
        server = self
        # What no handler knew: a test reads it when Helm gives up with "not found".
        self.unknown: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # An answer in one piece: its end would else wait 40 ms for an acknowledgement.
            wbufsize = -1

            def _answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                data = self.rfile.read(length)
                body = json.loads(data) if data else None
                code, answer = server._handle(self.command, self.path, body)
                text = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def kubeconfig(self) -> str:
        """The text of a configuration that leads here."""
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
                "users": [{"name": "fake", "user": {}}],
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
                "current-context": "fake",
            },
        )

    def objects(self, namespace: str) -> list[Object]:
        """Objects that were created and still exist, as they were sent."""
        with self._lock:
            return [
                json.loads(json.dumps(found))
                for place, found in self._objects.items()
                if place.namespace == namespace
            ]

    def forget(self, namespace: str, kind: str, name: str) -> None:
        """Deletes an object, as a person would."""
        with self._lock:
            found = [
                at
                for at in self._objects
                if (at.namespace, at.kind, at.name) == (namespace, kind, name)
            ]
            for at in found:
                del self._objects[at]
        assert found, f"there is no {kind} {name}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handle(self, verb: str, path: str, body: Any) -> tuple[int, Object]:
        parts = urlsplit(path)
        known = _discovery(parts.path) if verb == "GET" else None
        if known is not None:
            return 200, known
        place = _place(parts.path)
        if place is None:
            self.unknown.append(f"{verb} {path}")
            return _status(404, "NotFound", f"nothing is known about {parts.path}")
        with self._lock:
            return self._store(verb, place, parse_qs(parts.query), body)

    def _store(
        self, verb: str, place: Place, query: dict[str, list[str]], body: Any
    ) -> tuple[int, Object]:
        if not place.name and verb == "GET":
            selector = query.get("labelSelector", [""])[0]
            items = [
                found
                for at, found in self._objects.items()
                if (at.version, at.kind, at.namespace)
                == (place.version, place.kind, place.namespace)
                and _matches(found["metadata"].get("labels") or {}, selector)
            ]
            kind = f"{place.kind}List"
            return 200, {"kind": kind, "apiVersion": place.version, "metadata": {}, "items": items}
        if verb == "POST":
            name = str(body["metadata"]["name"])
            place = Place(place.version, place.kind, place.namespace, name)
            if place in self._objects:
                return _status(409, "AlreadyExists", f"{place.kind} {name} exists")
            return 201, self._keep(place, body)
        if verb == "PATCH":
            return 200, self._keep(place, body)  # apply: with or without one that is there
        found = self._objects.get(place)
        if found is None:
            return _status(404, "NotFound", f"no {place.kind} {place.name}")
        if verb == "GET":
            return 200, found
        if verb == "PUT":
            return 200, self._keep(place, body)
        if verb == "DELETE":
            del self._objects[place]
            return 200, found
        return _status(405, "MethodNotAllowed", verb)

    def _keep(self, place: Place, body: Object) -> Object:
        self._revision += 1
        stored: Object = json.loads(json.dumps(body))
        stored.update(apiVersion=place.version, kind=place.kind)
        stored["metadata"].update(
            namespace=place.namespace,
            uid=f"{self._revision:032x}",
            resourceVersion=str(self._revision),
        )
        self._objects[place] = stored
        return stored


def _discovery(path: str) -> Object | None:
    """Answers to what a client asks first; None for other paths."""
    if path == "/version":
        return {"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/arm64"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for version in KINDS:
            if "/" in version:
                entry = {"groupVersion": version, "version": version.partition("/")[2]}
                name = version.partition("/")[0]
                groups.append({"name": name, "versions": [entry], "preferredVersion": entry})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    head, _, version = path.lstrip("/").partition("/")
    if head in ("api", "apis") and version in KINDS:
        resources = [
            {
                "name": plural,
                "singularName": kind.lower(),
                "namespaced": True,
                "kind": kind,
                "verbs": _VERBS,
            }
            for kind, plural in KINDS[version].items()
        ]
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": resources,
        }
    return None


def _place(path: str) -> Place | None:
    """Of /api/v1/namespaces/N/PLURAL[/NAME] and /apis/G/V/namespaces/...; None for any other."""
    prefix, _, rest = path.partition("/namespaces/")
    version = prefix.lstrip("/").partition("/")[2]
    parts = rest.split("/")
    if version not in KINDS or len(parts) not in (2, 3):
        return None
    for kind, plural in KINDS[version].items():
        if plural == parts[1]:
            return Place(version, kind, parts[0], parts[2] if len(parts) == 3 else "")
    return None


def _matches(labels: dict[str, str], selector: str) -> bool:
    """Match labels: every `key=value` of the selector, and no value of `key!=value`."""
    for term in filter(None, selector.split(",")):
        key, unequal, value = term.partition("!=")
        if not unequal:
            key, _, value = term.partition("=")
        if (labels.get(key) == value.lstrip("=")) is bool(unequal):
            return False
    return True


def _status(code: int, reason: str, message: str) -> tuple[int, Object]:
    return code, {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }
