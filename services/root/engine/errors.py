"""Errors that end a request."""

from hearth.common.errors import HearthError, Reason


def shutting_down() -> HearthError:
    return HearthError(
        Reason.SHUTTING_DOWN,
        "the root is shutting down and accepts no requests; connect again when it is back",
    )


def cancelled() -> HearthError:
    return HearthError(Reason.CANCELLED, "the request was cancelled by its caller")


def internal(error: Exception) -> HearthError:
    return HearthError(
        Reason.INTERNAL,
        f"a step failed on the root: {type(error).__name__}: {error}; the root continues, "
        "and its log has the details",
    )


def not_sampled(error: Exception, made: int) -> HearthError:
    """Error for a request whose sampler failed, after `made` tokens."""
    return HearthError(
        Reason.INTERNAL,
        f"no token could be sampled after {made} of this request: {type(error).__name__}: {error}; "
        "other requests continue, and the root's log has the details",
        {"tokens": made},
    )


def not_finite(position: int, worker: str) -> HearthError:
    """Error for a request whose activations are infinite or NaN at a position of its tokens.

    worker: the address of the worker from which that comes; "" for none.
    """
    where = f" on worker {worker}" if worker else ""
    return HearthError(
        Reason.MODEL_ERROR,
        f"the model's activations are not finite at position {position}{where}; the weights may be "
        "damaged: check the model's files",
        {"position": position} | ({"worker": worker} if worker else {}),
    )


def formed_again() -> HearthError:
    return HearthError(Reason.CLUSTER_NOT_READY, "the cluster was formed again")


def not_serving(cause: HearthError) -> HearthError:
    """Error for a new request while the cluster is not ready, because of `cause`."""
    return HearthError(
        Reason.CLUSTER_NOT_READY,
        f"the cluster is not ready: {cause.message}",
        {**cause.metadata, "cause": cause.reason},
    )


def waited_too_long(cause: HearthError, seconds: float) -> HearthError:
    """Error for a request whose wait for the cluster timed out."""
    return HearthError(
        cause.reason,
        f"{cause.message}; the cluster was not ready again within {seconds:g} s (--pause-seconds)",
        {**cause.metadata, "pausedSeconds": f"{seconds:g}"},
        cause.code,
    )


def lost_too_often(cause: HearthError, times: int) -> HearthError:
    """Error for a request whose steps lost the cluster several times in a row."""
    return HearthError(
        cause.reason,
        f"{cause.message}; the cluster was lost {times} times in a row before this request got a "
        "token",
        {**cause.metadata, "times": times},
        cause.code,
    )


def fits_no_more(problem: HearthError, cause: HearthError) -> HearthError:
    """Error for a request that no longer fits after re-planning because of `cause`."""
    return HearthError(
        problem.reason,
        f"{problem.message}, since the model was divided again: {cause.message}",
        {**cause.metadata, **problem.metadata, "cause": cause.reason},
        problem.code,
    )
