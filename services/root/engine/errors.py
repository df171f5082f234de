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


def formed_anew() -> HearthError:
    return HearthError(Reason.CLUSTER_NOT_READY, "the cluster was formed anew")


def not_serving(cause: HearthError) -> HearthError:
    """What a new request is told while the cluster cannot serve because of `cause`."""
    return HearthError(
        Reason.CLUSTER_NOT_READY,
        f"the cluster is not serving: {cause.message}",
        {**cause.metadata, "cause": cause.reason},
    )


def waited_too_long(cause: HearthError, seconds: float) -> HearthError:
    """What a request is told that waited in vain for the cluster to come back."""
    return HearthError(
        cause.reason,
        f"{cause.message}; requests wait {seconds:g} s for the cluster to serve again "
        "(--pause-seconds), and it did not",
        {**cause.metadata, "pausedSeconds": f"{seconds:g}"},
        cause.code,
    )


def lost_too_often(cause: HearthError, times: int) -> HearthError:
    """What a request is told in whose steps the cluster is lost again and again."""
    return HearthError(
        cause.reason,
        f"{cause.message}; the cluster was lost {times} times in a row before this request got a "
        "token",
        {**cause.metadata, "times": times},
        cause.code,
    )


def fits_no_more(problem: HearthError, cause: HearthError) -> HearthError:
    """What a request is told that has no room in the cluster as it is after `cause`."""
    return HearthError(
        problem.reason,
        f"{problem.message}, since the model was divided anew: {cause.message}",
        {**cause.metadata, **problem.metadata, "cause": cause.reason},
        problem.code,
    )
