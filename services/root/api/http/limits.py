"""Limits of the HTTP port: sizes, times, places."""

# A request's body. Text of a full context of 128,000 positions fits (32 bytes a position).
MAX_BODY_BYTES = 4 << 20
# Start line and headers of a request.
MAX_HEAD_BYTES = 32 << 10
# A request's head, from its first byte or from the start of the connection; a TLS handshake.
HEAD_SECONDS = 10.0
# Silence within a body, and the whole body.
BODY_SILENCE_SECONDS = 10.0
BODY_SECONDS = 60.0
# A client that has not read its answer for so long has left.
WRITE_SECONDS = 30.0
# What the kernel holds of an answer for a client that reads slowly.
SEND_BUFFER_BYTES = 256 << 10
# A connection without a request. httpx keeps one for 5 s, so the server's limit must be longer.
KEEP_ALIVE_SECONDS = 75
# Connections at once; when all are taken, an idle one is closed for a new one. With TLS, those that
# have sent no whole hello have half of them.
MAX_CONNECTIONS = 512
# TLS handshakes at once, and of one host: each may hold 256 KiB before any credential.
HANDSHAKES = 64
HANDSHAKES_OF_EACH = 32
# While others wait for their turn, a handshake that has lasted for so long gives its turn up.
HANDSHAKE_PATIENCE_SECONDS = 0.5
# Requests at once of all clients, of which many may wait for the cluster.
MAX_REQUESTS = 512
# A body of so many bytes at most is read at once; larger ones take turns.
SMALL_BODY_BYTES = 64 << 10
# Larger bodies that are read at once, and of one client: each may hold MAX_BODY_BYTES.
READERS = 16
READERS_OF_EACH = 8
# While no token is made, an event of the face's protocol is sent this often.
HEARTBEAT_SECONDS = 10.0
# The progress of a prompt is sent this often, where it is asked for.
PROGRESS_SECONDS = 0.25
# A refused body is read on for so long, so that the client gets to read its answer.
LINGER_SECONDS = 0.5
# At the end of the root: for the last bytes of answers.
CLOSE_SECONDS = 0.2
