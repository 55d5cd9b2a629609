"""Makes the calls of a traced step fewer: in small modules, calling takes most of the time.

Of a residual block for tables, two of three calls only look at a tensor in another way, half of
them in a way in which it is looked at already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

VIEWS = {
    "detach", "alias", "view", "_unsafe_view", "expand", "transpose", "permute", "t", "squeeze",
    "unsqueeze", "select", "slice",
}  # fmt: skip
"""Operations of torch whose result is their first argument's memory."""


def tidy(traced: GraphModule) -> GraphModule:
    """Remove calls that change nothing from a graph of `make_fx`; multiply and add in one call.

    Args:
        traced: Changed in place. Traced with fake tensors: real ones tell no offsets.
    """
    graph = traced.graph
    first_views: dict[Any, Node] = {}
    """By memory and geometry."""
    memory: dict[Node, Node] = {}
    """The node that made the memory that a tensor looks at."""
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        source = node.args[0] if name_of(node) in VIEWS else node
        memory[node] = memory.get(source, source)
        geometry = tuple(value.shape), value.stride(), value.storage_offset(), value.dtype
        first = first_views.setdefault((memory[node], *geometry), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
    names = {name_of(node) for node in graph.nodes}
    if "as_strided" not in names and not any(name.endswith("_") for name in names):
        # No tensor is changed, and none is looked at by its memory.
        for node in list(graph.nodes):
            if _is_times_one(node):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
            elif _swaps_last_axes(node):
                _transpose_before_multiplying(graph, node)
            else:
                _add_while_multiplying(graph, node)
    graph.eliminate_dead_code()
    traced.recompile()
    return traced


def has_sizes_of_values(traced: GraphModule) -> bool:
    """Whether the size of a tensor depends on what another one holds, such as a mask."""
    for node in traced.graph.nodes:
        if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
            continue
        if name_of(node) != "index":
            return True
        kinds = {index.meta["val"].dtype for index in node.args[1] if index is not None}
        if kinds & {torch.bool, torch.uint8}:
            return True
    return False


def name_of(node: Node) -> str:
    """ "transpose" for a call of aten.transpose.int; "" for other nodes."""
    return str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""


def _is_times_one(node: Node) -> bool:
    if name_of(node) != "mul" or node.args[1] not in (1, 1.0) or isinstance(node.args[1], Node):
        return False
    (factor, _), made = node.args, node.meta["val"]
    return isinstance(factor, Node) and factor.meta["val"].dtype == made.dtype and (
        factor.meta["val"].stride() == made.stride()
    )  # fmt: skip


def _add_while_multiplying(graph: torch.fx.Graph, node: Node) -> None:
    """Let products (N, B, Q) that a bias (N, 1, Q) is added to begin with the bias."""
    if name_of(node) != "add" or node.kwargs or len(node.args) != 2:
        return
    for product, bias in (node.args, node.args[::-1]):
        if not (isinstance(product, Node) and isinstance(bias, Node)):
            return
        if name_of(product) != "bmm" or len(product.users) != 1 or bias is product:
            continue
        wide, narrow = product.meta["val"], bias.meta["val"]
        n, _, q = wide.shape
        if narrow.shape != (n, 1, q) or narrow.dtype != wide.dtype:
            continue
        with graph.inserting_before(node):
            both = graph.call_function(torch.ops.aten.baddbmm.default, (bias, *product.args), {})
        both.meta = node.meta
        node.replace_all_uses_with(both)
        graph.erase_node(node)
        return


def _swaps_last_axes(node: Node) -> bool:
    """Of three."""
    axes: Any = node.args[1:]
    if name_of(node) != "transpose" or node.meta["val"].dim() != 3:
        return False
    return {axis % 3 for axis in axes} == {1, 2}


def _transpose_before_multiplying(graph: torch.fx.Graph, node: Node) -> None:
    """Let (A B)^T be B^T A^T, as torch has gradients of weights without vmap: a product lies in
    memory in its own order, and to copy a transposed one takes half as long as to multiply."""
    product = node.args[0]
    if not isinstance(product, Node) or name_of(product) != "bmm" or len(product.users) != 1:
        return
    with graph.inserting_before(node):
        factors = [_transposed(graph, factor) for factor in product.args[::-1]]
        made = graph.call_function(torch.ops.aten.bmm.default, tuple(factors), {})
    made.meta = {"val": node.meta["val"].contiguous()}
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _transposed(graph: torch.fx.Graph, node: Any) -> Node:
    if _swaps_last_axes(node):
        before = node.args[0]
        assert isinstance(before, Node)
        return before
    made = graph.call_function(torch.ops.aten.transpose.int, (node, 1, 2), {})
    made.meta = {"val": node.meta["val"].transpose(1, 2)}
    return made
