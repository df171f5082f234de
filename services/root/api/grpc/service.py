"""hearth.v1.RootService: root.proto's messages to the frontend's values, and back.

The gate (gate.py) turns a HearthError of any handler into the status of its call. A call that its
client cancels, or whose deadline passes, is cancelled by gRPC, and its request ends with it.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from hearth.common.errors import HearthError, Reason
from hearth.common.types import WEIGHT
from hearth.converter.names import plain
from hearth.root.api.conversing import converse
from hearth.root.api.frontend import Frontend, Generation
from hearth.root.api.grpc.conversations import (
    conversation_of,
    delta_of,
    talks,
    tools_of,
)
from hearth.root.api.models import Models
from hearth.root.api.prompt import Input, Prompt, TokenIds
from hearth.root.api.spoken import Listener
from hearth.root.engine.mailbox import Delta, Done, Waiting
from hearth.root.engine.params import Sampling
from hearth.root.engine.structure.constraint import Constraint, Kind
from hearth.v1 import root_pb2, root_pb2_grpc

SERVICE = root_pb2.DESCRIPTOR.services_by_name["RootService"].full_name

# Metadata of Generate, both ways: the request's name in the root's log. A client may choose it.
REQUEST_ID = "hearth-request-id"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_POOLING: Mapping[int, str] = {
    root_pb2.POOLING_MEAN: "mean",
    root_pb2.POOLING_CLS: "cls",
    root_pb2.POOLING_LAST: "last",
}

Context = Any  # grpc.aio.ServicerContext; the stubs' own type is a private one


class RootService(root_pb2_grpc.RootServiceServicer):
    """See root.proto. Lives on the frontend's event loop."""

    def __init__(self, frontend: Frontend, models: Models | None = None) -> None:
        """models: several, of which a request chooses one."""
        self._frontend = frontend
        self._models = models

    async def _of(self, name: str) -> Frontend:
        """The frontend of a model. Raises HearthError INVALID_ARGUMENT for an unknown one."""
        if self._models is None:
            served = self._frontend.model().name
            if name and plain(name) != plain(served):
                raise _unknown(name, [served])
            return self._frontend
        found = self._models.named(name)
        if found is None:
            raise _unknown(name, self._models.names)
        return await self._models.frontend(found)

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: root_pb2.GenerateRequest, context: Context
    ) -> None:
        """Writes to the context itself, so that cancellation always ends it at once."""
        remaining = context.time_remaining()
        deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
        generation = replace(_generation(request), request_id=_request_id(context))
        if talks(request):
            tools = await asyncio.to_thread(tools_of, request)  # schemas may be megabytes
            generation = replace(generation, input=conversation_of(request, tools))
            frontend = await self._of(request.model)
            answer = await converse(frontend, generation, tools, deadline=deadline)
        else:
            frontend = await self._of(request.model)
            answer = await frontend.submit(generation, deadline=deadline)
        with answer:
            await context.send_initial_metadata(((REQUEST_ID, answer.request_id),))
            listener = Listener(answer.expected, one_call=answer.one_call)
            async for event in answer:
                # Waits while the client is slow; deltas made meanwhile are merged.
                for part in listener.heard(event):
                    await context.write(_response(part))

    async def Tokenize(  # noqa: N802
        self, request: root_pb2.TokenizeRequest, context: Context
    ) -> root_pb2.TokenizeResponse:
        frontend = await self._of(request.model)
        ids = await frontend.tokenize(request.text, request.add_special)
        return root_pb2.TokenizeResponse(ids=ids)

    async def Detokenize(  # noqa: N802
        self, request: root_pb2.DetokenizeRequest, context: Context
    ) -> root_pb2.DetokenizeResponse:
        frontend = await self._of(request.model)
        text = await frontend.detokenize(request.ids)
        return root_pb2.DetokenizeResponse(text=text)

    async def Embed(  # type: ignore[override]  # noqa: N802
        self, request: root_pb2.EmbedRequest, context: Context
    ) -> None:
        """Writes to the context itself, as Generate does."""
        remaining = context.time_remaining()
        deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
        pooling = _POOLING.get(request.pooling, "")
        inputs = [_embed_input(each) for each in request.inputs]
        frontend = await self._of(request.model)
        vectors = await frontend.embed(
            inputs, pooling, truncate=request.truncate, deadline=deadline
        )
        for vector in vectors:
            values = vector.values if request.raw else vector.normalised()
            await context.write(root_pb2.EmbedResponse(values=values, tokens=vector.tokens))

    async def GetModel(  # noqa: N802
        self, request: root_pb2.GetModelRequest, context: Context
    ) -> root_pb2.GetModelResponse:
        model = (await self._of(request.model)).model()
        return root_pb2.GetModelResponse(
            name=model.name,
            architecture=model.architecture,
            parameters=model.parameters,
            layers=model.layers,
            hidden_size=model.hidden_size,
            heads=model.heads,
            kv_heads=model.kv_heads,
            vocab_size=model.vocab_size,
            context_size=model.context_size,
            weight_type=WEIGHT[model.weight_type],
            has_chat_template=model.has_chat_template,
            recommended=_recommended(model.sampling_defaults),
        )

    async def ListModels(  # noqa: N802
        self, request: root_pb2.ListModelsRequest, context: Context
    ) -> root_pb2.ListModelsResponse:
        response = root_pb2.ListModelsResponse()
        models = self._models
        served = [self._frontend] if models is None else models.frontends
        for frontend in served:
            facts = frontend.model()
            response.models.add(
                name=facts.name,
                architecture=facts.architecture,
                parameters=facts.parameters,
                weight_type=WEIGHT[facts.weight_type],
                weight_bytes=sum(node.weight_bytes for node in frontend.cluster().nodes)
                if models is None
                else models.shelf.weight_bytes(facts.name),
                context_size=facts.context_size,
                loaded=models is None or models.shelf.loaded == facts.name,
            )
        return response

    async def GetCluster(  # noqa: N802
        self, request: root_pb2.GetClusterRequest, context: Context
    ) -> root_pb2.GetClusterResponse:
        return root_pb2.GetClusterResponse(cluster=self._frontend.cluster())

    async def WatchCluster(  # type: ignore[override]  # noqa: N802
        self, request: root_pb2.WatchClusterRequest, context: Context
    ) -> None:
        """Writes to the context itself; closes the watch when gRPC cancels the call."""
        async with aclosing(self._frontend.watch()) as statuses:
            async for status in statuses:
                await context.write(root_pb2.WatchClusterResponse(cluster=status))

    async def DrainWorker(  # noqa: N802
        self, request: root_pb2.DrainWorkerRequest, context: Context
    ) -> root_pb2.DrainWorkerResponse:
        status = await self._frontend.drain_worker(request.worker, request.undo)
        return root_pb2.DrainWorkerResponse(cluster=status)


def _unknown(name: str, served: Sequence[str]) -> HearthError:
    problem = f"the model {name[:200]!r} does not exist here; this root serves {', '.join(served)}"
    return HearthError(Reason.INVALID_ARGUMENT, problem, {"field": "model"})


def _recommended(defaults: Mapping[str, float]) -> root_pb2.RecommendedSampling:
    found = root_pb2.RecommendedSampling()
    for name, value in defaults.items():
        setattr(found, name, int(value) if name == "top_k" else value)
    return found


def _request_id(context: Context) -> str:
    """The id that the client gave; "" for none. Raises HearthError INVALID_ARGUMENT."""
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID, "")
    text = given if isinstance(given, str) else ""
    if given and not _ID.fullmatch(text):
        problem = f"{REQUEST_ID} must have 1 to 64 letters, digits, dots, dashes or underscores"
        raise HearthError(Reason.INVALID_ARGUMENT, problem)
    return text


def _generation(request: root_pb2.GenerateRequest) -> Generation:
    """Raises HearthError for values out of range, or without an input."""
    sampling = request.sampling
    given = sampling.HasField
    checked = Sampling(
        sampling.temperature,
        sampling.top_k,
        sampling.top_p if given("top_p") else 1.0,
        sampling.min_p,
        sampling.repetition_penalty if given("repetition_penalty") else 1.0,
        sampling.seed if given("seed") else None,
        constraint=_constraint(sampling.constraint) if given("constraint") else None,
    )
    return Generation(
        _input(request), request.max_tokens, checked, tuple(request.stop), request.ignore_eos
    )


def _constraint(constraint: root_pb2.Constraint) -> Constraint:
    """Raises HearthError without a language."""
    kind = constraint.WhichOneof("language")
    if kind is None or (kind == "json_object" and not constraint.json_object):
        raise HearthError(
            Reason.INVALID_ARGUMENT,
            "constraint has no language; give json_object, json_schema, regex or grammar",
            {"field": "constraint"},
        )
    text = "" if kind == "json_object" else getattr(constraint, kind)
    return Constraint(Kind(kind), text, field=f"constraint.{kind}")


def _input(request: root_pb2.GenerateRequest) -> Input:
    """Long inputs are not copied here: this runs in the event loop."""
    match request.WhichOneof("input"):
        case "tokens":
            return TokenIds(request.tokens.ids)
        case "conversation":
            return conversation_of(request)
        case "prompt":
            return Prompt(request.prompt)
    raise HearthError(
        Reason.INVALID_ARGUMENT,
        "the request has no input; give a prompt (it may be empty), tokens, or a conversation",
    )


def _embed_input(given: root_pb2.EmbedInput) -> Input:
    match given.WhichOneof("input"):
        case "tokens":
            return TokenIds(given.tokens.ids)
        case "text":
            return Prompt(given.text)
    raise HearthError(Reason.INVALID_ARGUMENT, "an input is empty; give a text or tokens")


def _response(event: Delta | Waiting | Done) -> root_pb2.GenerateResponse:
    if isinstance(event, Waiting):
        waiting = root_pb2.GenerateWaiting(reason=event.reason)
        return root_pb2.GenerateResponse(waiting=waiting)
    if isinstance(event, Delta):
        return root_pb2.GenerateResponse(delta=delta_of(event))
    usage = event.usage
    return root_pb2.GenerateResponse(
        done=root_pb2.GenerateDone(
            finish_reason=root_pb2.FinishReason.ValueType(int(event.finish_reason)),
            usage=root_pb2.Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                queue_seconds=usage.queue_seconds,
                prefill_seconds=usage.prefill_seconds,
                decode_seconds=usage.decode_seconds,
                cached_tokens=usage.cached_tokens,
            ),
        )
    )
