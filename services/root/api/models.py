"""The models that a root serves, of which a request chooses one by its name."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

from hearth.common.errors import HearthError, Reason
from hearth.converter.errors import ModelError
from hearth.converter.names import plain
from hearth.root.api.frontend import Frontend


class Shelf(Protocol):
    """The models behind the frontends, by name. Called from the event loop, but `open`."""

    @property
    def loaded(self) -> str | None:
        """The name of the model in memory; None for none."""

    def open(self, name: str) -> None:
        """Make a model's tokenizer ready, in any thread. Raises ModelError."""

    def keep(self, name: str, seconds: float | None) -> None:
        """Set how long a model stays in memory without a request; None: the default."""

    def expires(self, name: str) -> float | None:
        """Seconds until a model leaves memory; None where it is not there."""

    def weight_bytes(self, name: str) -> int:
        """Bytes of a model's weights."""


class Models:
    """Frontends by the names of their models, in the order of the command line."""

    def __init__(self, frontends: Mapping[str, Frontend], shelf: Shelf) -> None:
        self._frontends = frontends
        self.shelf = shelf
        # Tokenizers that are being opened, by the names of their models.
        self._opening: dict[str, asyncio.Future[None]] = {}

    @property
    def frontends(self) -> Sequence[Frontend]:
        """The frontends of all models."""
        return list(self._frontends.values())

    @property
    def names(self) -> Sequence[str]:
        """The names of all models."""
        return list(self._frontends)

    def named(self, name: str, any_model: bool = False) -> str | None:
        """The model that a request means, by its exact name; None for an unknown one.

        Case, the tag ":latest" and an owner ("owner/") make no difference. What else a model is
        called (ModelFacts.aliases) means it too. No name, or with
        `any_model` an unknown one, is the model in memory, else the first.
        """
        if name:
            wanted = plain(name)
            found = next((each for each in self._frontends if plain(each) == wanted), None)
            for each, frontend in self._frontends.items() if found is None else ():
                if wanted in map(plain, frontend.model().aliases):
                    found = each
            if found is not None or not any_model:
                return found
        return self.shelf.loaded or next(iter(self._frontends))

    async def frontend(self, name: str) -> Frontend:
        """The frontend of a model, by its exact name, with its tokenizer. Raises HearthError."""
        opening = self._opening.get(name)
        if opening is None:
            # One thread for all that ask: threads are few on small machines.
            opening = asyncio.ensure_future(asyncio.to_thread(self.shelf.open, name))
            self._opening[name] = opening
            opening.add_done_callback(functools.partial(self._opened, name))
        try:
            await asyncio.shield(opening)
        except ModelError as error:
            raise HearthError(Reason.MODEL_ERROR, f"{name} cannot be read: {error}") from error
        return self._frontends[name]

    def _opened(self, name: str, opening: asyncio.Future[None]) -> None:
        del self._opening[name]
        if not opening.cancelled():
            opening.exception()  # also where nobody waits for it any more

    def listed(self, name: str) -> Frontend:
        """The frontend of a model, for its facts."""
        return self._frontends[name]
