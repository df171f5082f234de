"""Measured decode steps beside the predicted ones, and the nodes that differ by half. Pure."""

from collections import deque
from collections.abc import Sequence
from statistics import median

from hearth.root.planning.predict import Prediction

# Steps that a measured speed is the median of, and the fewest that count.
_STEPS = 64
_ENOUGH = 32
# Measured over predicted computing of a node beyond which one of them is wrong.
_HALF = 2.0
# Below it, seconds are noise of a small model.
_LEAST_SECONDS = 1e-3


class Drift:
    """Steps that decode one sequence, against what was predicted for one plan."""

    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction
        self._walls: deque[float] = deque(maxlen=_STEPS)
        self._nodes: deque[tuple[float, ...]] = deque(maxlen=_STEPS)
        self._named: set[int] = set()
        self._steps = 0

    def add(self, wall_seconds: float, node_seconds: Sequence[tuple[float, float]]) -> bool:
        """Counts a step; True once for every 32 steps.

        node_seconds: (compute, sync) of each node, as in StepOutput.
        """
        if wall_seconds <= 0 or len(node_seconds) != len(self.prediction.machines):
            return False
        self._walls.append(wall_seconds)
        self._nodes.append(tuple(compute for compute, _ in node_seconds))
        self._steps += 1
        return self._steps % _ENOUGH == 0

    @property
    def due(self) -> bool:
        """True at 64 steps, and whenever their number has doubled: shares are worth a look."""
        return self._steps >= _STEPS and self._steps & (self._steps - 1) == 0

    @property
    def node_seconds(self) -> tuple[float, ...]:
        """Measured computing of each node in a step, the root's first; () before enough steps."""
        if len(self._walls) < _ENOUGH:
            return ()
        steps = tuple(self._nodes)
        return tuple(median(step[i] for step in steps) for i in range(len(steps[0])))

    @property
    def decode(self) -> float:
        """Measured tokens per second of one sequence; 0 before there are enough steps."""
        return 1 / median(tuple(self._walls)) if len(self._walls) >= _ENOUGH else 0.0

    def suspects(self) -> list[str]:
        """A sentence for each node whose computing differs by half, once for each."""
        if len(self._walls) < _ENOUGH:
            return []
        found = []
        pairs = zip(self.prediction.node_seconds, self.node_seconds, strict=True)
        for number, (expected, measured) in enumerate(pairs):
            if number in self._named or max(measured, expected) < _LEAST_SECONDS:
                continue
            ratio = measured / expected
            if 1 / _HALF < ratio < _HALF:
                continue
            self._named.add(number)
            name = self.prediction.machines[number].name
            cause = (
                "it is busy or throttled, or was measured wrongly"
                if ratio > 1
                else "it was measured wrongly, perhaps while it was busy"
            )
            found.append(
                f"{name} computes {measured * 1e3:.1f} ms of a token, and {expected * 1e3:.1f} ms "
                f"were expected of it: {cause}; `hearth plan --probe` there measures it again"
            )
        return found
