"""The converter's one exception. It knows no service: the root turns it into a status."""


class ModelError(Exception):
    """A model, or a file of one, that cannot be used. The message is for people: what failed, the
    numbers on both sides, and what to do."""
