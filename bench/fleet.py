"""Simulation of how many people several clusters serve, from one cluster's measured step times.

Each user sends a message, reads the answer, thinks, and sends the next; a conversation ends after
some turns. A cluster works as the root does: a step has a token of each sequence in decode, and
pieces of prompts up to a limit; requests beyond its sequences wait in order. Where a cluster still
has the pages of a conversation, only the new message is prefilled.

`hearth bench --sequences N --json` measures a step; then, for example:

    python bench/fleet.py --step-ms 1:29,2:33,4:40,8:55,16:93 --prefill 600 --clusters 1,3,10,30

Steps in between are interpolated, and beyond the last one extended by its slope. Everything is
drawn from one seed: the same command gives the same table.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import math
import random
import statistics
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# The root's limit of prompt tokens in a step beside decode (--max-step-tokens has more to say).
STEP_TOKENS = 128


@dataclass(frozen=True)
class Speed:
    """One cluster's: seconds of a decode step by sequences, and prompt tokens per second."""

    steps: tuple[tuple[int, float], ...]
    prefill: float

    def step(self, rows: int, prompt_tokens: int) -> float:
        """Seconds of a step that decodes `rows` sequences and reads so many prompt tokens."""
        return (self._decode(rows) if rows else 0.0) + prompt_tokens / self.prefill

    def _decode(self, rows: int) -> float:
        counts = [count for count, _ in self.steps]
        if len(counts) == 1:
            return self.steps[0][1]
        right = min(max(bisect.bisect_left(counts, rows), 1), len(counts) - 1)
        (a, low), (b, high) = self.steps[right - 1], self.steps[right]
        return low + (high - low) * (rows - a) / (b - a)


@dataclass(frozen=True)
class People:
    """Habits of users. Tokens and seconds are means; each message draws its own."""

    question_tokens: float = 60.0
    answer_tokens: float = 250.0
    # Read by every conversation: a system prompt.
    system_tokens: int = 200
    think_seconds: float = 45.0
    turns: float = 5.0


@dataclass
class Request:
    """One message. Times in seconds of the simulation."""

    user: int
    conversation: int
    came: float
    context: int
    prompt: int
    answer: int
    first: float = 0.0
    made: int = 0
    to_read: int = 0


@dataclass(eq=False)
class Cluster:
    """A root and its workers. kept: tokens by conversation, least recently used first."""

    speed: Speed
    sequences: int
    page_tokens: int
    running: list[Request] = field(default_factory=list)
    waiting: deque[Request] = field(default_factory=deque)
    kept: OrderedDict[int, int] = field(default_factory=OrderedDict)
    busy: float = 0.0
    stepping: bool = False
    # Tokens of admitted prompts, and of those the ones whose pages were there.
    asked: int = 0
    found: int = 0

    @property
    def load(self) -> int:
        return len(self.running) + len(self.waiting)

    def admit(self) -> None:
        """Takes waiting requests into the batch while there are places."""
        while self.waiting and len(self.running) < self.sequences:
            request = self.waiting.popleft()
            found = min(self.kept.pop(request.conversation, 0), request.context)
            self.asked += request.context + request.prompt
            self.found += found
            request.to_read = request.context + request.prompt - found
            self.running.append(request)

    def begin(self) -> tuple[float, list[Request], list[tuple[Request, int]]]:
        """A step: its seconds, who gets a token, and who reads how many prompt tokens."""
        decoding = [each for each in self.running if not each.to_read]
        left = STEP_TOKENS
        reading: list[tuple[Request, int]] = []
        for request in self.running:
            count = min(request.to_read, left)
            if count:
                reading.append((request, count))
                left -= count
        seconds = self.speed.step(len(decoding), STEP_TOKENS - left)
        self.busy += seconds
        return seconds, decoding, reading

    def keep(self, request: Request) -> None:
        """The pages of an ended request stay until others need the place."""
        self.kept[request.conversation] = request.context + request.prompt + request.answer
        self.kept.move_to_end(request.conversation)
        while sum(self.kept.values()) > self.page_tokens:
            self.kept.popitem(last=False)


Choose = Callable[[Sequence[Cluster], Request, random.Random], Cluster]


def anywhere(clusters: Sequence[Cluster], request: Request, draw: random.Random) -> Cluster:
    """A Service without affinity."""
    return clusters[draw.randrange(len(clusters))]


def by_client(clusters: Sequence[Cluster], request: Request, draw: random.Random) -> Cluster:
    """The chart's Service: a client stays with one cluster."""
    return clusters[request.user * 2654435761 % (1 << 32) % len(clusters)]


def by_load(clusters: Sequence[Cluster], request: Request, draw: random.Random) -> Cluster:
    """An endpoint picker: the cluster with the pages while it has places, else the least loaded."""
    for each in clusters:
        if request.conversation in each.kept and each.load < each.sequences:
            return each
    least = min(each.load for each in clusters)
    return draw.choice([each for each in clusters if each.load == least])


CHOICES: dict[str, Choose] = {"service": anywhere, "client": by_client, "picker": by_load}


@dataclass(frozen=True)
class Result:
    """Of all requests after a time to warm up; seconds."""

    users: int
    answers: int
    first_median: float
    first_95: float
    # Tokens per second that a user sees while an answer comes; the slowest twentieth.
    rate_median: float
    rate_5: float
    tokens_per_second: float
    busy: float
    found: float


def simulate(
    speed: Speed,
    clusters: int,
    users: int,
    choose: Choose,
    people: People | None = None,
    sequences: int = 16,
    page_tokens: int = 65536,
    seconds: float = 1800.0,
    seed: int = 7,
) -> Result:
    """Lets `users` talk to so many clusters for `seconds`, after a third of that to warm up."""
    people = people or People()
    # Choosing draws apart, so that the same people come however it is done.
    draw, picks = random.Random(seed), random.Random(seed + 1)
    fleet = [Cluster(speed, sequences, page_tokens) for _ in range(clusters)]
    order = 0
    events: list[tuple[float, int, Callable[[float], None]]] = []
    contexts: dict[int, tuple[int, int]] = {}
    conversations = users
    ended: list[tuple[Request, float]] = []

    def after(at: float, do: Callable[[float], None]) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (at, order, do))

    def size(mean: float) -> int:
        return max(1, round(draw.expovariate(1 / mean)))

    def ask(user: int) -> Callable[[float], None]:
        def send(now: float) -> None:
            nonlocal conversations
            conversation, context = contexts.get(user, (user, people.system_tokens))
            if draw.random() < 1 / people.turns:
                conversation, context = conversations, people.system_tokens
                conversations += 1
            request = Request(
                user, conversation, now, context, size(people.question_tokens),
                size(people.answer_tokens),
            )  # fmt: skip
            cluster = choose(fleet, request, picks)
            cluster.waiting.append(request)
            if not cluster.stepping:
                step(cluster, now)

        return send

    def step(cluster: Cluster, now: float) -> None:
        cluster.admit()
        cluster.stepping = bool(cluster.running)
        if not cluster.running:
            return
        took, decoding, reading = cluster.begin()

        def end(now: float) -> None:
            # The end of a prompt gives the first token, as in a step of the root.
            for request, count in reading:
                request.to_read -= count
                if not request.to_read:
                    request.first, request.made = now, 1
            for request in decoding:
                request.made += 1
            for request in [each for each in cluster.running if each.made >= each.answer]:
                cluster.running.remove(request)
                cluster.keep(request)
                ended.append((request, now))
                contexts[request.user] = (
                    request.conversation, request.context + request.prompt + request.answer,
                )  # fmt: skip
                after(now + draw.expovariate(1 / people.think_seconds), ask(request.user))
            step(cluster, now)

        after(now + took, end)

    for user in range(users):
        after(draw.uniform(0, people.think_seconds), ask(user))
    warm = seconds / 3
    busy_before = None
    while events and events[0][0] < warm + seconds:
        at, _, do = heapq.heappop(events)
        if busy_before is None and at >= warm:
            busy_before = sum(each.busy for each in fleet)
        do(at)
    counted = [(request, at) for request, at in ended if at >= warm]
    firsts = sorted(request.first - request.came for request, _ in counted) or [float("inf")]
    rates = sorted(
        (request.made - 1) / (at - request.first) for request, at in counted if request.made > 1
    ) or [0.0]
    return Result(
        users,
        len(counted),
        statistics.median(firsts),
        firsts[int(0.95 * (len(firsts) - 1))],
        statistics.median(rates),
        rates[int(0.05 * (len(rates) - 1))],
        sum(request.made for request, _ in counted) / seconds,
        (sum(each.busy for each in fleet) - (busy_before or 0.0)) / (seconds * clusters),
        sum(each.found for each in fleet) / max(1, sum(each.asked for each in fleet)),
    )


def most_users(run: Callable[[int], Result], first_95: float, rate_5: float) -> Result:
    """The run with the most users of whom 95 % wait and read no slower than that."""

    def good(result: Result) -> bool:
        return result.first_95 <= first_95 and result.rate_5 >= rate_5

    best = run(1)
    if not good(best):
        return best
    low, high = 1, 2
    while good(found := run(high)):
        best, low, high = found, high, high * 2
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        found = run(middle)
        if good(found):
            best, low = found, middle
        else:
            high = middle
    return best


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _count(text: str) -> int:
    value = _positive(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def _counts(text: str) -> list[int]:
    return [_count(each) for each in text.split(",")]


def _steps(text: str) -> tuple[tuple[int, float], ...]:
    pairs = [each.partition(":") for each in text.split(",")]
    steps = {_count(count): _positive(milliseconds) / 1000 for count, _, milliseconds in pairs}
    return tuple(sorted(steps.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--step-ms", type=_steps, required=True, metavar="N:MS,...")
    parser.add_argument("--prefill", type=_positive, required=True, metavar="TOKENS/S")
    parser.add_argument("--clusters", type=_counts, default="1,3,10,30")
    parser.add_argument("--choose", choices=CHOICES, nargs="+", default=list(CHOICES))
    parser.add_argument("--sequences", type=_count, default=16)
    parser.add_argument("--page-tokens", type=int, default=65536, help="KV pages of a cluster")
    parser.add_argument("--first-seconds", type=float, default=5.0, help="95 %% wait no longer")
    parser.add_argument("--rate", type=float, default=5.0, help="95 %% read so many tokens/s")
    parser.add_argument("--seconds", type=_positive, default=1800.0)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    speed = Speed(given.step_ms, given.prefill)
    heads = (
        "clusters", "chosen by", "users", "first token, median and 95 %",
        "tokens/s of a user, median and 5 %", "tokens/s of all", "busy", "of prompts in the cache",
    )  # fmt: skip
    print("|", " | ".join(heads), "|")
    print("|" + "---|" * len(heads))
    for clusters in given.clusters:
        for name in given.choose:

            def run(users: int, clusters: int = clusters, name: str = name) -> Result:
                return simulate(
                    speed, clusters, users, CHOICES[name], None, given.sequences,
                    given.page_tokens, given.seconds, given.seed,
                )  # fmt: skip

            r = most_users(run, given.first_seconds, given.rate)
            print(
                f"| {clusters} | {name} | {r.users} | {r.first_median:.1f} s, {r.first_95:.1f} s "
                f"| {r.rate_median:.1f}, {r.rate_5:.1f} | {r.tokens_per_second:.0f} "
                f"| {r.busy:.0%} | {r.found:.0%} |",
                flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
