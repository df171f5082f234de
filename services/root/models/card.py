"""The facts of a model that is not open, and finding the models that a root may serve."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hearth.common.errors import HearthError, Reason
from hearth.converter import Model, ModelError, ModelSpec, open_model
from hearth.converter.names import plain
from hearth.converter.pooling import Pooling
from hearth.converter.readers.gguf_parts import part_names
from hearth.converter.weights import row_bytes
from hearth.root.cluster.limits import limits_for
from hearth.root.planning.blueprint import draw
from hearth.root.scheduling.batch import Limits
from hearth.root.settings import ClusterSettings

log = logging.getLogger(__name__)

# Models of one root: each is opened once at the start.
MAX_MODELS = 256
_MODEL_SUFFIXES = (".gguf", ".m")
_CONFIGS = ("config.json", "model_config.yaml", "ckpt.pt", "model.pt")


@dataclass(frozen=True)
class Card:
    """The facts of a model. source, weights: as open_model takes them."""

    source: str
    weights: str | None
    spec: ModelSpec
    weight_type: str
    # Bytes of the weights as they are held, all nodes together.
    weight_bytes: int
    sampling_defaults: Mapping[str, float]
    pooling: Pooling
    # What requests may need, if every node has enough memory.
    limits: Limits
    # Names besides the spec's that mean it and no other model.
    aliases: Sequence[str] = ()
    # Model.notes.
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name

    @property
    def called(self) -> Sequence[str]:
        """All names of the model."""
        return [self.name, *self.aliases]

    def renamed(self, name: str) -> Card:
        """The same by another name."""
        return replace(self, spec=replace(self.spec, name=name))


def read_cards(
    sources: Sequence[str], weights: str | None, settings: ClusterSettings
) -> list[Card]:
    """A card of each model.

    sources: names and paths as open_model takes them; a directory without a model of its own stands
    for the models in it, where one that cannot run is left out, with a warning. Models of one name
    (as two quantizations of one) are named by their files.
    Raises ModelError or HearthError, BAD_SETTING for no models or two of one name.
    """
    cards: list[Card] = []
    for source, listed in _expanded(sources):
        try:
            cards.append(_read(source, weights, settings))
        except (ModelError, HearthError) as error:
            if listed:
                raise
            log.warning("%s is left out: %s", source, error)
    cards = _named_apart(cards)
    if not cards:
        raise HearthError(Reason.BAD_SETTING, f"--models: no model in {', '.join(sources)}")
    if len(cards) > MAX_MODELS:
        problem = f"--models: {len(cards)} models; at most {MAX_MODELS} are served"
        raise HearthError(Reason.BAD_SETTING, problem)
    return cards


def _named_apart(cards: Sequence[Card]) -> list[Card]:
    """The same, where two of one name are called as their files are. Raises HearthError."""
    counts = Counter(plain(card.name) for card in cards)
    named = [
        card if counts[plain(card.name)] == 1 else card.renamed(Path(card.source).stem)
        for card in cards
    ]
    known: dict[str, Card] = {}
    for card in named:
        other = known.setdefault(plain(card.name), card)
        if other is not card:
            problem = f"--models: {other.source} and {card.source} are both named {card.name!r}"
            raise HearthError(Reason.BAD_SETTING, problem)
    uses = Counter(name for card in cards for name in {plain(each) for each in card.called})
    return [
        replace(
            card,
            aliases=[each for each in old.called if uses[plain(each)] == 1 and each != card.name],
        )
        for card, old in zip(named, cards, strict=True)
    ]


def _expanded(sources: Sequence[str]) -> list[tuple[str, bool]]:
    """(source, whether it was named itself)."""
    found: list[tuple[str, bool]] = []
    for source in sources:
        path = Path(source)
        inside = _inside(path) if path.is_dir() else []
        found += [(str(each), False) for each in inside] or [(source, True)]
    return found


def _inside(directory: Path) -> list[Path]:
    """The models in a directory that is not one itself; empty for a model."""
    if any((directory / name).is_file() for name in _CONFIGS):
        return []
    try:
        children = sorted(directory.iterdir())
    except OSError as error:
        problem = f"--models: cannot read {directory}: {error.strerror or error}"
        raise HearthError(Reason.BAD_SETTING, problem) from error
    files = [each for each in children if each.suffix in _MODEL_SUFFIXES and each.is_file()]
    # Image encoders lie beside their models, and the later parts of a model beside its first.
    files = [each for each in files if not each.name.lower().startswith("mmproj")]
    files = [each for each in files if part_names(each.name)[0] == each.name]
    folders = [each for each in children if each.is_dir() and _is_model(each)]
    return [*folders, *files]


def _is_model(directory: Path) -> bool:
    try:
        names = [each.name for each in directory.iterdir()]
    except OSError:  # another user's
        return False
    return any(name in _CONFIGS or Path(name).suffix in _MODEL_SUFFIXES for name in names)


def _read(source: str, weights: str | None, settings: ClusterSettings) -> Card:
    with open_model(source, weights) as model:
        # What cannot be cut is an error of the start.
        blueprint = draw(model, settings)
        blueprint.plan(settings.workers)
        return Card(
            source=source,
            weights=weights,
            spec=model.spec,
            weight_type=model.weight_type,
            weight_bytes=_weight_bytes(model),
            sampling_defaults=model.sampling_defaults,
            pooling=model.pooling,
            notes=tuple(model.notes),
            limits=limits_for(blueprint, blueprint.expected_room()),
            aliases=model.aliases,
        )


def _weight_bytes(model: Model) -> int:
    total = 0
    for name in model.spec.tensor_names():
        shape = model.spec.tensor_shape(name)
        rows = math.prod(shape) // shape[-1]
        total += rows * row_bytes(model.tensor_type(name), shape[-1])
    return total
