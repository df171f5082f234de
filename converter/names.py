"""Names of models, as requests give them."""


def plain(name: str) -> str:
    """A name as names are compared: without case, the tag ":latest" and an owner ("owner/")."""
    return name.lower().removesuffix(":latest").rpartition("/")[2]
