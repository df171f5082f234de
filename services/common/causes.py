"""Causes of failed connections, in few words, from gRPC's message about them.

client/causes.py is a copy: the client SDK depends on no other part of Hearth.
"""

import re

# gRPC's words, and those for people.
_CAUSES = (
    (
        re.compile(r"CERTIFICATE_VERIFY_FAILED(?:: ([a-z][a-z ]{1,60}))?"),
        r"the other end's certificate is not accepted: \1",
    ),
    (re.compile(r"WRONG_VERSION_NUMBER|HTTP_REQUEST"), "only one end uses TLS"),
    (re.compile(r"[Hh]andshake failed"), "the TLS handshake failed"),
    (re.compile(r"Failed parsing HTTP/2|Trying to connect an http1"), "what answers is not gRPC"),
    (re.compile(r"Connection refused"), "connection refused"),
    (re.compile(r"Connection reset"), "connection reset"),
    (re.compile(r"No route to host"), "no route to the host"),
    (re.compile(r"Network is unreachable"), "the network is unreachable"),
    (re.compile(r"Connection timed out|Timeout occurred|timed? ?out before"), "no answer in time"),
    (re.compile(r"Deadline Exceeded|settings timeout"), "no answer in time"),
    (re.compile(r"(?:DNS resolution failed for|errors resolving) ([^:,\s]+)"), r"unknown name \1"),
    (re.compile(r"Socket closed|Stream removed|Broken pipe"), "the connection broke"),
)


def short_cause(details: str) -> str:
    """The part of gRPC's message about a failed connection that says why, where it is known."""
    for pattern, cause in _CAUSES:
        found = pattern.search(details)
        if found is not None:
            return found.expand(cause).removesuffix(": ")
    return details
