"""The membership's rules from the settings, and its question of what fits, put to the blueprint."""

from hearth.common.errors import HearthError, Reason
from hearth.root.membership.decisions import Fit, Member, Misfit, Rules
from hearth.root.planning.blueprint import Blueprint
from hearth.root.planning.facts import NodeFacts
from hearth.root.settings import Joining


def fit_of(blueprint: Blueprint) -> Fit:
    """The function that answers whether the model fits well on some workers, by the blueprint."""

    def fit(workers: tuple[Member, ...]) -> Misfit | None:
        facts = [NodeFacts(w.title, w.room, w.address) for w in workers]
        found = blueprint.misfit(facts)
        if found is not None:
            rank, problem = found
            return Misfit(workers[rank - 1].address if rank else "", problem)
        slow = blueprint.left_out(facts)
        return Misfit(slow.workers[0], slow.reason, slow=True) if slow is not None else None

    return fit


def rules_of(joining: Joining, static: tuple[str, ...], most: int) -> Rules:
    """The rules; static: the listed workers; most: workers that the model can be divided over.

    Raises HearthError BAD_SETTING where the settings need more workers than that.
    """
    discovering = bool(joining.dns) or joining.mdns
    needed = joining.min_workers
    if needed is None:
        needed = len(static) or int(discovering)
    if needed < 0:
        raise HearthError(Reason.BAD_SETTING, f"--min-workers {needed} is less than 0")
    if needed > most:
        problem = (
            f"--min-workers {needed} is more than the {most} workers that the model's heads, or "
            "its layers in a pipeline, allow beside the root"
        )
        raise HearthError(Reason.BAD_SETTING, problem)
    return Rules(most, needed, static, joining.wait_seconds)
