"""Which workers have room for the model together. Pure state, as membership.py."""

from collections.abc import Sequence

from hearth.root.membership.apart import Apart
from hearth.root.membership.candidates import (
    Candidate,
    Fit,
    Misfit,
    Rules,
    State,
    addresses,
    member,
)

# Those chosen, in rank order; or none, and why.
Choice = tuple[list[Candidate], Misfit | None]


class Chooser:
    """Chooses, and remembers which workers the cluster was formed with before."""

    def __init__(self, rules: Rules, fit: Fit) -> None:
        self._most = rules.most
        self._fit = fit
        self.apart = Apart()
        self._formed_before: set[tuple[str, ...]] = set()

    def formed(self, workers: tuple[str, ...]) -> None:
        """These have their slices from now on."""
        self._formed_before.add(workers)

    def known(self, chosen: Sequence[Candidate]) -> bool:
        """Whether just these were formed before, so that no weights move."""
        return addresses(chosen) in self._formed_before

    def renamed(self, old: str, new: str) -> None:
        """A worker is at another address now."""
        self._formed_before = {
            tuple(new if address == old else address for address in workers)
            for workers in self._formed_before
        }

    def fits(self, candidates: Sequence[Candidate]) -> bool:
        """Whether the first of them, as many as can be in, have room."""
        return self._fit(tuple(map(member, candidates[: self._most]))) is None

    def choose(self, candidates: Sequence[Candidate], now: float, anyway: bool = False) -> Choice:
        """As many of the candidates as have room for the model together; or why there are none.

        Those who were in come first. A worker that lacks memory, or that does not reach another, is
        left out, and told so. anyway: rather those who may not reach each other than none.
        """
        first: Misfit | None = None
        for way in self.apart.ways(candidates, now):
            chosen, misfit = self._choose(way)
            if misfit is None:
                self._tell_apart(candidates, chosen, now)
                return chosen, None
            first = first or misfit
        return self._choose(candidates) if anyway else ([], first)

    def _choose(self, candidates: Sequence[Candidate]) -> Choice:
        left = sorted(candidates, key=lambda c: (not c.member, c.order))
        first: Misfit | None = None
        while True:
            chosen = sorted(left[: self._most], key=lambda c: c.order)
            misfit = self._fit(tuple(map(member, chosen)))
            if misfit is None:
                return chosen, None
            first = first or misfit
            lacking = next((c for c in chosen if c.address == misfit.address), None)
            if lacking is None or lacking.state is State.IN:
                return [], first
            left.remove(lacking)
            lacking.lacking, lacking.reason = True, misfit.problem

    def _tell_apart(
        self, candidates: Sequence[Candidate], chosen: Sequence[Candidate], now: float
    ) -> None:
        for candidate in candidates:
            if candidate not in chosen and candidate.state is State.READY:
                partner = self.apart.partner(candidate, chosen, now)
                if partner is not None:
                    candidate.reason = f"it and worker {partner.title} do not reach each other"

    def divide(
        self,
        staying: Sequence[Candidate],
        ready: Sequence[Candidate],
        now: float,
        anyway: bool = False,
    ) -> Choice:
        """Those who stay, where that moves no weights; else with the others that are there."""
        alone = self.choose(staying, now)
        if alone[1] is None and self.known(alone[0]):
            return alone
        together = self.choose(list(dict.fromkeys([*staying, *ready])), now, anyway)
        return together if together[1] is None else alone

    def spare(self, ready: Sequence[Candidate], chosen: Sequence[Candidate]) -> None:
        """Tells those that are one too many so."""
        if len(chosen) == self._most:
            for candidate in ready:
                if candidate not in chosen and not candidate.lacking:
                    candidate.reason = (
                        f"not needed: the model's KV heads allow {self._most} workers beside the "
                        "root"
                    )
