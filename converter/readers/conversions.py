"""The remark that says which types of a model's files are not held as they are."""

from collections.abc import Callable, Iterator, Mapping

from hearth.converter.model import Model
from hearth.converter.stored import Stored
from hearth.converter.weights import loaded_type, row_bytes


def conversion_remarks(
    model: Model,
    tensors: Mapping[str, Stored],
    label: Callable[[str], str],
    sizes: bool = True,
) -> Iterator[str]:
    """One remark for a model with types that are converted while it is loaded; none for others.

    A type that the core could hold is left out where --weights asked for another.
    label: (type) -> its name in the line; "" for a type that is not worth one. sizes: add the
    bytes of all tensors before and after.
    """
    kinds: dict[str, set[str]] = {}
    stored = loaded = 0
    for name, tensor in tensors.items():
        kind, entry = model.tensor_type(name), model.spec.tensor(name)
        stored += tensor.rows * tensor.row_bytes
        loaded += tensor.rows * row_bytes(kind, tensor.columns)
        shown = label(tensor.kind)
        if entry.vector or entry.exact or not shown:
            continue
        held = shown.lower() == loaded_type(tensor.kind)
        if shown.lower() != kind and (not held or model.requested_type is None):
            kinds.setdefault(kind, set()).add(shown)
    if not kinds:
        return
    became = f" ({stored / (1 << 30):.1f} GiB become {loaded / (1 << 30):.1f})" if sizes else ""
    parts = (
        f"{', '.join(sorted(each))} are converted to {kind}" for kind, each in sorted(kinds.items())
    )
    yield f"tensors in {', '.join(parts)} while loading{became}"
