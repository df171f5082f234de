"""The application: who may call, which face answers, and errors in that face's shape."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from hearth.common.errors import HearthError
from hearth.common.live_calls import LiveCalls
from hearth.root.api.fairness import CLIENT, Places, Turns
from hearth.root.api.http import (
    anthropic,
    cluster,
    embeddings,
    limits,
    llama_server,
    ollama,
    openai,
    page,
    responses,
)
from hearth.root.api.http.access import Rules
from hearth.root.api.http.call import Call, GoneError
from hearth.root.api.http.errors import (
    HttpError,
    http_error,
    not_found,
    shape_of,
    unforeseen,
    wrong_method,
)
from hearth.root.api.http.requests import Services
from hearth.root.api.validity import while_valid

log = logging.getLogger(__name__)

Handler = Callable[[Call, Services], Awaitable[None]]
# Counts an answered request: face, status.
Count = Callable[[str, int], object]

# Path -> method -> handler. OpenAI's paths are served without /v1, too.
_OPENAI: Mapping[str, tuple[str, Handler]] = {
    "/chat/completions": ("POST", openai.chat),
    "/chat/completions/input_tokens": ("POST", openai.count_chat),
    "/completions": ("POST", openai.completions),
    "/embeddings": ("POST", embeddings.openai),
    "/models": ("GET", openai.models),
    "/models/{id:path}": ("GET", openai.model),
    "/responses": ("POST", responses.create),
    "/responses/input_tokens": ("POST", responses.count_tokens),
}
_OTHERS: Mapping[str, tuple[str, Handler]] = {
    "/v1/messages": ("POST", anthropic.messages),
    "/v1/messages/count_tokens": ("POST", anthropic.count_tokens),
    **ollama.ROUTES,
    **llama_server.ROUTES,
    **page.ROUTES,
    **cluster.ROUTES,
}


class Endpoint:
    """A handler as Starlette calls it."""

    def __init__(self, handler: Handler, services: Services) -> None:
        self._handler = handler
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by the router, whose scope has what it read from the path."""
        call: Call = scope["call"]
        call.scope = scope
        await self._handler(call, self._services)


class App:
    """Serves one request after another of each connection. An ASGI application."""

    def __init__(self, services: Services, rules: Rules, count: Count) -> None:
        self._rules = rules
        self._count = count
        self._live = LiveCalls()
        self._places = Places(limits.MAX_REQUESTS, "requests")
        self._readers = Turns(limits.READERS, limits.READERS_OF_EACH)
        served = dict(_OTHERS)
        for path, route in _OPENAI.items():
            served[path] = served[f"/v1{path}"] = route
        self._router = Router(
            [
                Route(path, Endpoint(handler, services), methods=[method])
                for path, (method, handler) in served.items()
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request. Never raises: an answer that fails ends the connection."""
        scope["path"], key = self._rules.path_and_key(scope["path"], scope["raw_path"])
        call = Call(scope, receive, send, shape_of(scope["path"]), self._readers)
        try:
            await self._answer(call, key)
        except GoneError:
            call.connection.abort()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            call.connection.abort()
        except Exception:
            log.exception("%s %s failed", call.method, call.path[:200])
            call.connection.abort()
        finally:
            await call.close()
            self._count(_face(call.path), call.status or 499)

    async def _answer(self, call: Call, key: str) -> None:
        try:
            if await self._rules.admit(call):
                await self._route(call, key)
        except HttpError as error:
            await call.fail(error)
        except HearthError as error:
            await call.fail(http_error(error))
        except HTTPException as error:
            make = wrong_method if error.status_code == 405 else not_found
            await call.fail(make(call.method, call.path))
        except (GoneError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.exception("%s %s failed", call.method, call.path[:200])
            await call.fail(unforeseen(f"{call.method} {call.path[:200]}", error))

    async def _route(self, call: Call, key: str) -> None:
        caller = call.caller = self._rules.caller(call, key)
        client = caller.name or call.connection.peer[0]
        CLIENT.set(client)
        scope: dict[str, Any] = {**call.scope, "app": self, "call": call}
        with while_valid(self._live, self._rules.access, caller), self._places.hold(client):
            await self._router(scope, call.receive, call.send)


def _face(path: str) -> str:
    """The face of a path, for metrics."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    if path.startswith("/api/"):
        return "ollama"
    if path in ("/", "/cluster") or path.startswith(("/page/", "/cluster/")):
        return "page"
    known = path.removeprefix("/v1")
    return "openai" if path.startswith("/v1/") or known in _OPENAI else "llama-server"
