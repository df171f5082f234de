"""Checked parameters of a request: sampling, stop texts, token ids.

An error for a value out of range names the value and the range (see root.proto). The comparisons of
floats also refuse NaN.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hearth.common.candidates import DRAWN, OF_NUCLEUS
from hearth.common.errors import HearthError, Reason
from hearth.converter.pooling import POOLINGS
from hearth.root.engine.structure.constraint import Constraint

# With more candidates than this, whole rows of logits are about as cheap.
MAX_CANDIDATES = 256
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_BIASES = 1024
# Alternatives of each token that a request may ask for.
MAX_TOP_LOGPROBS = 20


def invalid(message: str, **metadata: object) -> HearthError:
    """INVALID_ARGUMENT with `metadata`."""
    return HearthError(Reason.INVALID_ARGUMENT, message, metadata)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Choice of the next token; greedy by default. Raises HearthError if out of range."""

    # 0 is greedy.
    temperature: float = 0.0
    # Keep the k most likely tokens; 0 keeps all.
    top_k: int = 0
    # Nucleus sampling: keep the most likely tokens whose probabilities add up to this.
    top_p: float = 1.0
    # Drop tokens less likely than this fraction of the most likely one.
    min_p: float = 0.0
    # Divisor of the positive logits of tokens seen before, and factor of the negative ones.
    repetition_penalty: float = 1.0
    # The same seed gives the same text; None: a random seed.
    seed: int | None = None
    # Subtracted from the logit of a token that is in the answer: once, and for each time.
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # (token id, number added to its logit).
    logit_bias: tuple[tuple[int, float], ...] = ()
    # The language of the answer; None for any text.
    constraint: Constraint | None = None

    @property
    def adjusts(self) -> bool:
        """True if logits are changed before a token is chosen (adjusting.py)."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)

    @property
    def candidates(self) -> int:
        """Number of candidates from which this samples; 0: it needs whole rows."""
        if self.repetition_penalty != 1 or self.adjusts:
            return 0
        if self.temperature == 0:
            return 1
        if self.draws:
            return OF_NUCLEUS if self.nucleus else DRAWN if self.min_p else 1
        return self.top_k if self.top_k <= MAX_CANDIDATES else 0

    @property
    def draws(self) -> bool:
        """True if the candidates are those of a draw, not just the most likely tokens."""
        return self.temperature > 0 and self.top_k == 0

    @property
    def nucleus(self) -> bool:
        """True if tokens are drawn from a nucleus."""
        return self.draws and self.top_p < 1

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, "[0, 100]", lambda v: 0 <= v <= 100)
        _check("top_k", self.top_k, "[0, 4294967295]", lambda v: 0 <= v < 1 << 32)
        _check("top_p", self.top_p, "(0, 1]", lambda v: 0 < v <= 1)
        _check("min_p", self.min_p, "[0, 1]", lambda v: 0 <= v <= 1)
        _check("repetition_penalty", self.repetition_penalty, "(0, 10]", lambda v: 0 < v <= 10)
        for name in ("presence_penalty", "frequency_penalty"):
            _check(name, getattr(self, name), "[-100, 100]", lambda v: -100 <= v <= 100)
        if len(self.logit_bias) > MAX_BIASES:
            raise invalid(
                f"logit_bias has {len(self.logit_bias)} tokens; at most {MAX_BIASES} are allowed",
                field="logit_bias",
            )
        for _, bias in self.logit_bias:
            _check("logit_bias", bias, "[-100, 100]", lambda v: -100 <= v <= 100)
        if self.seed is not None:
            _check("seed", self.seed, "[0, 18446744073709551615]", lambda v: 0 <= v < 1 << 64)


def _check(name: str, value: float, allowed: str, holds: Callable[[float], bool]) -> None:
    if not holds(value):
        raise invalid(
            f"{name} is {value}; it must be in {allowed}",
            field=name,
            value=value,
            range=allowed,
        )


@dataclass(frozen=True, slots=True)
class GenerateParams:
    """One request: prompt token ids and parameters. Raises HearthError if out of range."""

    prompt: tuple[int, ...]
    # Maximum number of new tokens; 0 means as many as fit.
    max_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    # Texts that end the answer; never part of it.
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    # Log probabilities of each token and of so many alternatives; None for none.
    top_logprobs: int | None = None
    # With `top_logprobs`: those of the prompt's tokens, too. The first has none. The prompt then
    # comes from no cache, and takes as long as drafts that are all accepted.
    prompt_logprobs: bool = False
    # "mean", "cls" or "last": a vector of the prompt instead of tokens; "" for tokens.
    pooling: str = ""
    # False: compute the whole prompt, and keep nothing of it for later requests.
    prefix_cache: bool = True
    # Only requests of the same salt share the pages of a prefix.
    salt: bytes = b""
    # Control tokens whose names are part of the answer's text.
    visible: frozenset[int] = frozenset()

    @property
    def candidates(self) -> int:
        """Number of candidates that a step must return; 0: whole rows of logits."""
        return self.sampling.candidates if self.top_logprobs is None else 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_tokens < 1 << 32:
            raise invalid(
                f"max_tokens is {self.max_tokens}; it must be in [0, 4294967295]",
                field="max_tokens",
                value=self.max_tokens,
            )
        if self.pooling not in ("", *POOLINGS):
            raise invalid(
                f"pooling is {self.pooling[:40]!r}; it must be one of {', '.join(POOLINGS)}",
                field="pooling",
            )
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise invalid(
                f"top_logprobs is {self.top_logprobs}; it must be in [0, {MAX_TOP_LOGPROBS}]",
                field="top_logprobs",
                value=self.top_logprobs,
            )
        if len(self.stop) > MAX_STOPS:
            raise invalid(
                f"{len(self.stop)} stop texts were given; at most {MAX_STOPS} are allowed",
                stops=len(self.stop),
            )
        for text in self.stop:
            if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise invalid(
                    f"a stop text has {len(text)} characters; it must have 1 to "
                    f"{MAX_STOP_CHARACTERS}",
                    characters=len(text),
                )
            check_text("stop text", text)


def check_text(what: str, text: str) -> str:
    """Returns `text`; raises HearthError if it has a lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(
            f"the {what} is not valid UTF-8: it has a lone surrogate "
            f"(U+{ord(text[error.start]):04X}) at character {error.start}",
            position=error.start,
        ) from None
    return text


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raises HearthError for a token id outside the vocabulary."""
    if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
        return
    for index, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise invalid(
                f"token id {token} at index {index} is not in the vocabulary, "
                f"whose ids are 0 to {vocab_size - 1}",
                token=token,
                index=index,
                vocabSize=vocab_size,
            )
