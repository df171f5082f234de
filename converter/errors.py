"""The converter's one exception; the services map it to their own errors."""


class ModelError(Exception):
    """A model, or a file of one, that cannot be used.

    The message is for people: what failed, the numbers on both sides, and what to do."""
