"""llguidance over a model's vocabulary: compiled constraints, and the tokens that they allow.

The library is imported, and the vocabulary's tables are made, when the first constraint comes: they
take some 20 MiB for 50,000 tokens and 60 MiB for 150,000.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from hearth.common.allowed import Mask
from hearth.common.errors import HearthError
from hearth.converter.tokenizers.base import Tokenizer
from hearth.root.engine.structure import grammar
from hearth.root.engine.structure.constraint import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# Compiled constraints that are kept for the next request with the same.
_KEPT = 8
# Tokens that are tried when a constraint is compiled.
_PROBES = 3
# Time for the steps of other answers while the tables of a vocabulary are made.
_BREATH_SECONDS = 0.05
# Characters of forced text that are worth a draft.
_LEAST_FORCED = 2
# A state of the lexer takes 1 to 2 KB.
_MAX_LEXER_STATES = 30_000
_MAX_GRAMMAR_SIZE = 200_000
_MAX_PROBLEM = 400


class Matcher:
    """The state of a constraint in one answer. For one thread at a time."""

    def __init__(
        self,
        constraint: Constraint,
        matcher: LLMatcher,
        vocab_size: int,
        vocabulary: LLTokenizer,
    ) -> None:
        self._constraint = constraint
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._mask: Mask | None = None
        self._count = 0
        # Tokens after which the constraint allows no more; None while it does.
        self.length: int | None = None

    def mask(self) -> Mask:
        """The tokens that may come next.

        Tokens that end a sequence are among them where the answer may end. Raises HearthError
        INVALID_ARGUMENT where the constraint needs more time or memory than it may.
        """
        if self._mask is None:
            with self._errors():
                bits = self._matcher.compute_bitmask()
            self._mask = self._own(np.frombuffer(bits, np.uint8))
        return self._mask

    def allows(self, token: int) -> bool:
        """True if a token may come next: far cheaper than `mask`, and with its errors."""
        if token >= self._vocab_size:
            return False
        with self._errors():
            return self._matcher.validate_tokens([token]) == 1

    def mask_after(self, drafts: Sequence[int]) -> Mask:
        """The tokens that may come after `drafts`; all where the answer cannot go on after them.

        Raises HearthError as `mask` does.
        """
        if not drafts:
            return self.mask()
        with self._errors():
            taken = self._matcher.try_consume_tokens(list(drafts))
            goes_on = taken == len(drafts) and not self._matcher.is_stopped()
            bits = self._matcher.compute_bitmask() if goes_on else None
            if taken:
                self._matcher.rollback(taken)
        return self.every if bits is None else self._own(np.frombuffer(bits, np.uint8))

    def forced(self) -> tuple[int, ...]:
        """Tokens that spell the text which must come next, as drafts: there are other spellings.

        Raises HearthError as `mask` does.
        """
        if self.length is not None:
            return ()
        with self._errors():
            text = self._matcher.compute_ff_bytes().decode("utf-8", "ignore")
            if len(text) < _LEAST_FORCED:
                return ()
            tokens = self._vocabulary.greedy_tokenize(text)
            count = self._matcher.validate_tokens(tokens)
        return tuple(tokens[:count])

    @property
    def every(self) -> Mask:
        """A mask that allows every token."""
        return self._own(np.full(-(-self._vocab_size // 8), 0xFF, np.uint8))

    def accept(self, token: int) -> None:
        """Adds a token to the answer. Raises HearthError for one that is not allowed."""
        self._mask = None
        with self._errors():
            self._matcher.consume_token(token)
        self._count += 1
        if self._matcher.is_stopped():
            self.length = self._count

    def _own(self, bits: Mask) -> Mask:
        """The bits of this vocabulary's tokens; those after the last are 0."""
        whole, rest = divmod(self._vocab_size, 8)
        mask = bits[: whole + (rest > 0)].copy()
        if rest:
            mask[-1] &= (1 << rest) - 1
        return mask

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises HearthError for an error of the library, which it keeps."""
        with _panics(self._constraint):
            yield
        if self._matcher.is_error():
            problem = f"after {self._count} tokens: {_line(self._matcher.get_error())}"
            raise self._constraint.refused(problem, {"tokens": self._count})


class Masks(Mapping[int, Mask]):
    """The allowed tokens of a step's output rows, each computed when it is first read."""

    def __init__(self, matchers: Mapping[int, tuple[Matcher, Sequence[int]]]) -> None:
        """matchers: by row, each with the drafts before the row's token."""
        self._matchers = matchers
        self._masks: dict[int, Mask] = {}

    def __getitem__(self, row: int) -> Mask:
        if row not in self._masks:
            matcher, drafts = self._matchers[row]
            try:
                self._masks[row] = matcher.mask_after(drafts)
            except HearthError:
                # Its request alone fails, when a token is sampled. The step is also that of others.
                self._masks[row] = matcher.every
        return self._masks[row]

    def __iter__(self) -> Iterator[int]:
        return iter(self._matchers)

    def __len__(self) -> int:
        return len(self._matchers)


class Structures:
    """Compiles constraints for a tokenizer's vocabulary. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, rows: int | None = None) -> None:
        """rows: tokens that the model has logits of; None for all of the tokenizer's."""
        self._tokenizer = tokenizer
        self._size = min(tokenizer.vocab_size, tokenizer.vocab_size if rows is None else rows)
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        # Without a token, and never advanced.
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def matcher(self, constraint: Constraint) -> Matcher:
        """The state at an answer's begin. May compute for a second.

        Raises HearthError INVALID_ARGUMENT for what is not valid, too large or not supported.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer)
            vocabulary = self._vocabulary
            compiled = self._compiled.get(constraint)
        if compiled is None:
            compiled = self._compile(constraint, vocabulary)
        with self._lock:
            self._compiled[constraint] = compiled
            self._compiled.move_to_end(constraint)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            own = compiled.deep_copy()
        return Matcher(constraint, own, self._size, vocabulary)

    def _compile(self, constraint: Constraint, vocabulary: LLTokenizer) -> LLMatcher:
        from llguidance import LLMatcher

        text = grammar.of(constraint, self._tokenizer.control_ids)
        with _panics(constraint):
            made = LLMatcher(vocabulary, text, log_level=0, limits=_limits())
            problem = _probe(made)
        if problem:
            if "NoExtension" in problem:
                problem = "no text matches it"
            raise constraint.refused(_line(problem))
        return made


def _probe(made: LLMatcher) -> str:
    """The problem of a grammar, or of its first steps; "" for none.

    Some limits are met in these, and grammars without a text are seen.
    """
    trial = made.deep_copy()
    for _ in range(_PROBES):
        if trial.is_error() or trial.is_stopped():
            break
        bits = np.frombuffer(trial.compute_bitmask(), np.uint8)
        found = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        if not trial.is_error() and found.size:
            trial.consume_token(int(found[0]))
    return trial.get_error() if trial.is_error() else ""


class _Words:
    """A vocabulary as llguidance reads it."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        controls = {id: name for name, id in tokenizer.control_ids.items()}
        self.tokens = [
            controls[id].encode(errors="replace") if id in controls else tokenizer.token_bytes(id)
            for id in range(tokenizer.vocab_size)
        ]
        self.special_token_ids = sorted(controls)
        self.eos_token_id = _ends(tokenizer)[0]
        if self.eos_token_id == tokenizer.vocab_size:
            self.tokens.append(b"<end>")
            self.special_token_ids.append(tokenizer.vocab_size)

    def __call__(self, text: str | bytes) -> list[int]:
        """Never called: grammars force no tokens (grammar.HEADER)."""
        raise NotImplementedError


def _ends(tokenizer: Tokenizer) -> list[int]:
    """The tokens that end a sequence; one beyond the vocabulary for a model without any."""
    return sorted(tokenizer.eos_ids) or [tokenizer.vocab_size]


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    words = _Words(tokenizer)
    # The library holds Python's lock while it makes each of the two tables. Between them other
    # answers get their next tokens.
    trie = LLTokenizer(
        TokenizerWrapper(words),
        n_vocab=len(words.tokens),
        eos_token=_ends(tokenizer),
        slices=[],
    )
    time.sleep(_BREATH_SECONDS)
    return trie.with_slices(LLTokenizer.general_slices())


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_lexer_states=_MAX_LEXER_STATES,
        max_grammar_size=_MAX_GRAMMAR_SIZE,
        verbose_errors=False,
    )


@contextmanager
def _panics(constraint: Constraint) -> Iterator[None]:
    """Converts the library's exceptions to HearthError; panics of Rust are BaseExceptions."""
    try:
        yield
    except (HearthError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise constraint.refused(_line(str(error) or type(error).__name__)) from error


def _line(problem: str) -> str:
    """An error of the library without its dumps of states."""
    return problem.split("\n<")[0].strip()[:_MAX_PROBLEM] or "it failed without a reason"
