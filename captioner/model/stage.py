"""An earlier stage of the vision encoder, to which gradients can be taken.   B images · C channels · h·w cells"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


@dataclass(frozen=True, eq=False)
class Stage:
    """A feature map from which an encoder computed its last one, both in one autograd graph."""

    values: Tensor
    """(B, C, h, w)"""
    edge: GradientEdge
    """Where the encoder went on from this map; `values` may be a rearranged copy that nothing depends on."""

    @classmethod
    def of(cls, values: Tensor, last: Tensor) -> Self | None:
        """The stage with these values (B, C, h, w); None if the map `last` was not computed from them.

        Transformers give their blocks' tokens as rearranged copies. What they copied is the first node on the way back
        from the copy that `last` depends on.
        """
        nodes = _nodes(last)
        edge = get_gradient_edge(values)
        while edge.node not in nodes:
            [(node, output), *others] = edge.node.next_functions or [(None, 0)]
            if node is None or others:
                return None
            edge = GradientEdge(node, output)
        return cls(values, edge)

    def contributions(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """Gradient times activation less its mean over the cells, the sum of the positive channels: (B, h, w).

        `outputs` were computed from the encoder's features; `gradients` is the derivative with respect to them of what
        the cells contribute to. The graph is kept for more calls.
        """
        [gradient] = torch.autograd.grad(outputs, [self.edge], gradients, retain_graph=True)
        with torch.enable_grad():
            # In the order of `values`: a rearrangement is the derivative of its own backward pass.
            rearranged = torch.zeros_like(self.values).requires_grad_()
            [back] = torch.autograd.grad(self.values, [self.edge], rearranged, retain_graph=True, create_graph=True)
            [gradient] = torch.autograd.grad(back, [rearranged], gradient)
        centered = self.values.detach() - self.values.detach().mean(dim=(2, 3), keepdim=True)
        return (gradient * centered).clamp(min=0).sum(dim=1)


def _nodes(tensor: Tensor) -> set[Any]:
    """The nodes of the autograd graph that a tensor was computed by."""
    found: set[Any] = set()
    ahead: list[Any] = [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in found:
            found.add(node)
            ahead += [earlier for earlier, _ in node.next_functions]
    return found
