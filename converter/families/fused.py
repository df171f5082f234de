"""Recipes for tensors that files hold together: queries with keys and values, gate with up."""

from collections.abc import Callable

import numpy as np

from hearth.converter.blocks import AttentionSpec
from hearth.converter.families.base import Files, Names, Recipe, find, rows_of
from hearth.converter.spec import ModelSpec
from hearth.converter.stored import Indices, PickedRows, Stacked, Stored, Transposed
from hearth.converter.tensors import TensorSpec


def fused_qkv(name: str) -> Names:
    """Queries, keys and values of a layer, one below the other. name: without its ending."""
    recipes: dict[str, Recipe] = {}
    for part in ("q", "k", "v"):
        recipes[f"w{part}"] = rows_of(f"{name}.weight", _qkv_rows)
        recipes[f"b{part}"] = rows_of(f"{name}.bias", _qkv_rows)
    return recipes


def fused_gate_up(name: str) -> Names:
    """Gate and up of a feed-forward, one below the other. name: without its ending."""
    return {part: rows_of(f"{name}.weight", _gate_up_rows) for part in ("w1", "w3")}


def fused_experts(name: str, half: int, otherwise: Recipe | None = None) -> Recipe:
    """Gate (half 0) or up (half 1) of all experts, stored as [experts, gate then up, columns].

    otherwise: the recipe for files without a tensor of this name.
    """

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        rows, columns = tensor.shape
        stored = files.matrix(name.replace("{layer}", str(tensor.layer)), 2 * rows, columns)
        each = rows // tensor.parts
        first = (2 * np.arange(tensor.parts)[:, None] + half) * each
        return PickedRows(stored, (first + np.arange(each)).reshape(-1))

    return recipe if otherwise is None else where(name, recipe, otherwise)


def turned_experts(name: str, parts: int, part: int, otherwise: Recipe) -> Recipe:
    """One of `parts` equal parts of all experts' rows, stored as [experts, columns, rows].

    Rows may also be stored before columns: as in transformers, where the shape is that of both
    ways, they are. otherwise: as of fused_experts.
    """

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        stored = name.replace("{layer}", str(tensor.layer))
        rows, columns = tensor.shape
        each = rows // tensor.parts
        if files.shape(stored)[1:] == (parts * each, columns):
            whole = files.matrix(stored, parts * rows, columns)
            first = (parts * np.arange(tensor.parts)[:, None] + part) * each
            return PickedRows(whole, (first + np.arange(each)).reshape(-1))
        whole = files.matrix(stored, tensor.parts * columns, parts * each)
        experts: list[Stored] = []
        for expert in range(tensor.parts):
            one = PickedRows(whole, np.arange(expert * columns, (expert + 1) * columns))
            experts.append(PickedRows(Transposed(one), np.arange(part * each, (part + 1) * each)))
        return Stacked(experts)

    return where(name, recipe, otherwise)


def reordered(recipe: Recipe, order: Callable[[ModelSpec, TensorSpec], Indices]) -> Recipe:
    """Rows of what another recipe finds, in another order. order: as of `picked`."""

    def found(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        return PickedRows(find(files, spec, tensor, recipe), order(spec, tensor))

    return found


def where(name: str, recipe: Recipe, otherwise: Recipe) -> Recipe:
    """One recipe for files with a tensor of this name, another for those without."""

    def found(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        there = name.replace("{layer}", str(tensor.layer)) in files
        return find(files, spec, tensor, recipe if there else otherwise)

    return found


def attention_of(spec: ModelSpec, tensor: TensorSpec) -> AttentionSpec:
    """The attention of a tensor's layer."""
    mixer = spec.kinds[spec.kind_of_layer[tensor.layer]].mixer
    assert isinstance(mixer, AttentionSpec)
    return mixer


def _qkv_rows(spec: ModelSpec, tensor: TensorSpec) -> tuple[int, int]:
    attention = attention_of(spec, tensor)
    queries, keys = attention.heads * attention.key_size, attention.kv_heads * attention.key_size
    values = attention.kv_heads * attention.value_size
    first = {"q": 0, "k": queries, "v": queries + keys}[tensor.part[1]]
    return first, queries + keys + values


def _gate_up_rows(spec: ModelSpec, tensor: TensorSpec) -> tuple[int, int]:
    rows = tensor.shape[0]
    return (rows if tensor.part == "w3" else 0), 2 * rows
