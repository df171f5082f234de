"""A conversation that fits into the context: the oldest turns are dropped, the system never.

Pure: it asks no model. The tokens of a turn are those that its answer counted; those of the next
question are estimated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Positions that are kept free for the next answer: this part of the context, at most so many.
_ANSWER_PART = 4
_MAX_ANSWER = 512
# Bytes of text in a token at least, as a rule; and what a template adds to a message.
_BYTES_PER_TOKEN = 3
_MESSAGE_TOKENS = 8


@dataclass(slots=True)
class Turn:
    """A question and its answer. tokens: what both take in the context, as far as it is known."""

    question: str
    answer: str
    tokens: int


@dataclass(slots=True)
class Conversation:
    """The turns that are still sent, oldest first. context_size: positions; 0 if not known."""

    context_size: int
    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, str]]:
        """The messages to send for a question."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            found.append({"role": "user", "content": turn.question})
            found.append({"role": "assistant", "content": turn.answer})
        return [*found, {"role": "user", "content": question}]

    def text(self, question: str) -> str:
        """The conversation as one text, for a model without a chat template."""
        return "\n".join(message["content"] for message in self.messages(question))

    def make_room(self, question: str) -> int:
        """Drop the oldest turns until question and answer have room; the number dropped."""
        if not self.context_size:
            return 0
        reserve = min(_MAX_ANSWER, self.context_size // _ANSWER_PART)
        needed = _estimate(self.system) + _estimate(question) + reserve
        dropped = 0
        while self.turns and needed + sum(turn.tokens for turn in self.turns) > self.context_size:
            del self.turns[0]
            dropped += 1
        return dropped

    def drop_oldest(self) -> bool:
        """Drop the oldest turn, where the root found the conversation too long; False for none."""
        if not self.turns:
            return False
        del self.turns[0]
        return True

    def add(self, question: str, answer: str, used: int = 0) -> None:
        """Append a turn. used: positions of the whole conversation with it; 0 if not known."""
        before = sum(turn.tokens for turn in self.turns)
        tokens = used - before if used > before else _estimate(question) + _estimate(answer)
        self.turns.append(Turn(question, answer, tokens))

    def clear(self) -> None:
        """Forget the turns; the system message stays."""
        self.turns.clear()


def _estimate(text: str) -> int:
    """Tokens of a message, rather too many than too few."""
    return len(text.encode(errors="replace")) // _BYTES_PER_TOKEN + _MESSAGE_TOKENS if text else 0
