"""Causes of failed connections, in few words, from gRPC's message about them."""

import re

# gRPC's words, and those for people.
_CAUSES = (
    (re.compile(r"Connection refused"), "connection refused"),
    (re.compile(r"Connection reset"), "connection reset"),
    (re.compile(r"No route to host"), "no route to the host"),
    (re.compile(r"Network is unreachable"), "the network is unreachable"),
    (re.compile(r"Connection timed out|Timeout occurred|timed? ?out before"), "no answer in time"),
    (re.compile(r"(?:DNS resolution failed for|errors resolving) ([^:,\s]+)"), r"unknown name \1"),
    (re.compile(r"Socket closed|Stream removed|Broken pipe"), "the connection broke"),
)


def short_cause(details: str) -> str:
    """The part of gRPC's message about a failed connection that says why, where it is known."""
    for pattern, cause in _CAUSES:
        found = pattern.search(details)
        if found is not None:
            return found.expand(cause)
    return details
