"""Errors that end a request."""

from hearth.common.errors import HearthError, Reason


def shutting_down() -> HearthError:
    return HearthError(
        Reason.SHUTTING_DOWN,
        "the root is shutting down and takes no new requests; connect again when it is back",
    )


def cancelled() -> HearthError:
    return HearthError(Reason.CANCELLED, "the request was cancelled by its caller")


def internal(error: Exception) -> HearthError:
    return HearthError(
        Reason.INTERNAL,
        f"a step failed on the root: {type(error).__name__}: {error}; the root goes on serving, "
        "and its log has the details",
    )


def not_sampled(error: Exception, made: int) -> HearthError:
    """Error for a request whose sampler failed, after `made` tokens."""
    return HearthError(
        Reason.INTERNAL,
        f"no token could be sampled after {made} of this request: {type(error).__name__}: {error}; "
        "other requests go on, and the root's log has the details",
        {"tokens": made},
    )


def formed_again() -> HearthError:
    return HearthError(Reason.CLUSTER_NOT_READY, "the cluster was formed again")


def not_serving(cause: HearthError) -> HearthError:
    """Error for a new request while the cluster is not ready, because of `cause`."""
    return HearthError(
        Reason.CLUSTER_NOT_READY,
        f"the cluster is not serving: {cause.message}",
        {**cause.metadata, "cause": cause.reason},
    )


def waited_too_long(cause: HearthError, seconds: float) -> HearthError:
    """Error for a request whose wait for the cluster timed out."""
    return HearthError(
        cause.reason,
        f"{cause.message}; requests wait {seconds:g} s for the cluster to serve again "
        "(--pause-seconds), and it did not",
        {**cause.metadata, "pausedSeconds": f"{seconds:g}"},
        cause.code,
    )


def lost_too_often(cause: HearthError, times: int) -> HearthError:
    """Error for a request in whose steps the cluster was lost again and again."""
    return HearthError(
        cause.reason,
        f"{cause.message}; the cluster was lost {times} times in a row before this request got a "
        "token",
        {**cause.metadata, "times": times},
        cause.code,
    )


def fits_no_more(problem: HearthError, cause: HearthError) -> HearthError:
    """Error for a request that does not fit the cluster any more after `cause`."""
    return HearthError(
        problem.reason,
        f"{problem.message}, since the model was divided again: {cause.message}",
        {**cause.metadata, **problem.metadata, "cause": cause.reason},
        problem.code,
    )
