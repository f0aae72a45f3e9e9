"""A network within one box as a function of its unstable neurons alone.

Over a box most ReLUs are surely dead or surely active. Written in terms of the inputs and of the ReLUs whose
sign is open there, each pre-activation is one linear function,

    z_k = sum_j A_kj relu(z_j) + B_k x + d_k + e_k,   |e_k| <= delta_k over the box,

e_k being the rounding of computing A, B and d. Of a convolutional network thousands of neurons become
hundreds, and its convolutions small dense matrices. The delta_k go into the magnitudes that ``bounds``
charges rounding at, so that every bound of the small network is one of the large network as well.
"""

from __future__ import annotations

import numpy as np
import torch

from milpver.bounds._crown import Multipliers, affine_terms
from milpver.bounds._rounding import gamma
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.graph import Affine, Gate, Graph, Input, Max, Node, Relu
from milpver.linear import Conv, Dense, LinearMap
from milpver.query import Budget

__all__ = ["collapsed"]

#: Rows that are pulled back together.
_ROWS = 256
#: Entries of the small network's matrices up to which it is made.
_LARGEST = 1 << 25
#: Where a function's coefficients of the inputs stand, beside those of ReLUs: node 0 may have a ReLU too.
_INPUTS = -1
#: A convolution's product costs this many of a dense matrix's.
_CONVOLVED = 8


def collapsed(
    tensors: TensorGraph, root: Workspace, best: Multipliers
) -> tuple[TensorGraph, Workspace, Multipliers] | None:
    """Write a network in terms of what is unstable over a box.

    Args:
        tensors: the graph, of Input, Affine, Relu and unbudgeted Gate nodes.
        root: the box's bounds of every node, a batch of one.
        best: multipliers of the rows over the output, [1, rows, size].

    Returns:
        The smaller network, its bounds, and its multipliers; None where it would not be cheaper.
    """
    graph = tensors.graph
    spans = sorted({node.source for node in graph.nodes if isinstance(node, Relu)})
    signs = ((source, (root.lows[source] < 0) & (root.highs[source] > 0)) for source in spans)
    open_ = {source: sign[0].nonzero()[:, 0] for source, sign in signs}
    if not _worth_it(graph, {source: len(places) for source, places in open_.items()}):
        return None
    work = _Collapse(tensors, root, open_)
    for source in spans:
        if len(open_[source]):
            work.affine(source, open_[source])
            work.relu(source, len(open_[source]))
    last = len(graph.nodes) - 1
    work.affine(last, torch.arange(graph.outputs, device=tensors.device))
    small = TensorGraph(Graph(tuple(work.nodes)), tensors.device)
    space = Workspace(small, Budget())
    for index, node in enumerate(work.nodes):
        space.add(root.lows[0], root.highs[0])
        if index in work.origin:
            # Not met with what the small network's matrices give: these are off by e_k.
            old, places, delta = work.origin[index]
            space.lows[index], space.highs[index] = root.lows[old][:, places], root.highs[old][:, places]
            space.magnitudes[index] = (space.magnitudes[index] + delta / gamma(4)) * (1 + gamma(8))
        elif isinstance(node, Relu):
            space.highs[index] = space.highs[node.source].clamp(min=0.0)
    alpha = {
        work.place[graph.nodes[relu].sources[0]]: value[:, :, open_[graph.nodes[relu].sources[0]]]
        for relu, value in best.alpha.items()
        if len(open_[graph.nodes[relu].sources[0]])
    }
    return small, space, Multipliers(alpha)


def _worth_it(graph: Graph, sizes: dict[int, int]) -> bool:
    """Whether convolutions go away, and the small network takes fewer products than the large one.

    Without convolutions, nodes are worth bounds of their own pre-activations: that takes the layers as they
    are, through which a row goes from one to the next.
    """
    total, entries = graph.inputs, 0
    for size in sizes.values():
        entries += size * total
        total += size
    entries += graph.outputs * total
    linears = [linear for node in graph.nodes if isinstance(node, Affine) for _, linear in node.terms]
    if not any(isinstance(linear, Conv) for linear in linears):
        return False
    products = sum(
        linear.outputs * linear.row_terms * (_CONVOLVED if isinstance(linear, Conv) else 1)
        for linear in linears
    )
    return entries <= min(_LARGEST, products)


class _Collapse:
    """The smaller network while it is built.

    Attributes:
        nodes: its nodes.
        place: node of the large network that some Relu reads -> its Relu in the small one.
        origin: Affine node of the small network -> node of the large one, entries, and delta.
    """

    def __init__(self, tensors: TensorGraph, root: Workspace, open_: dict[int, torch.Tensor]) -> None:
        self.tensors = tensors
        self.root = root
        self.open = open_
        self.nodes: list[Node] = [tensors.graph.nodes[0]]
        self.place: dict[int, int] = {}
        self.origin: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}

    def affine(self, source: int, places: torch.Tensor) -> None:
        """Append some entries of a node as a linear function of what stands before."""
        size = self.tensors.graph.nodes[source].size
        parts = []
        for start in range(0, len(places), _ROWS):
            rows = torch.nn.functional.one_hot(places[start : start + _ROWS], size).to(torch.float64)
            parts.append(self.function(source, rows))
        terms: list[tuple[int, LinearMap]] = []
        reached = sorted({node for coefficients, _, _ in parts for node in coefficients})
        for node in reached:
            width = self.tensors.graph.inputs if node == _INPUTS else len(self.open[node])
            blocks = [
                coefficients.get(node, constant.new_zeros(len(constant), width))
                for coefficients, constant, _ in parts
            ]
            matrix = torch.cat(blocks).cpu().numpy()
            terms.append((0 if node == _INPUTS else self.place[node], Dense(np.ascontiguousarray(matrix))))
        bias = torch.cat([constant for _, constant, _ in parts]).cpu().numpy()
        self.nodes.append(Affine(tuple(terms), bias, self.tensors.graph.nodes[source].name))
        self.origin[len(self.nodes) - 1] = source, places, torch.cat([delta for _, _, delta in parts])

    def relu(self, source: int, size: int) -> None:
        """Append the Relu over the node that was appended last."""
        self.nodes.append(Relu(len(self.nodes) - 1, size, self.tensors.graph.nodes[source].name))
        self.place[source] = len(self.nodes) - 1

    def function(
        self, start: int, rows: torch.Tensor
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Rows over a node as linear functions of the inputs and of the unstable ReLUs.

        Args:
            start: the node.
            rows: float64 [rows, size].

        Returns:
            Coefficients by the node that the ReLU reads, or ``_INPUTS``, float64 [rows, its unstable ones];
            constants, float64 [rows]; and delta, float64 [rows]: what the functions may be off by over the
            box. Rounding is charged as in ``bounds._crown``; the slopes 0 and 1 round nothing.
        """
        graph, root = self.tensors.graph, self.root
        constant = rows.new_zeros(len(rows))
        error, summed = torch.zeros_like(constant), torch.zeros_like(constant)
        found: dict[int, torch.Tensor] = {}
        pending = {start: rows}
        additions = 8
        while pending:
            index = max(pending)
            c, node = pending.pop(index), graph.nodes[index]
            additions += 4
            sent: list[tuple[int, torch.Tensor]] = []
            match node:
                case Input():
                    found[_INPUTS] = c
                case Affine():
                    operators = self.tensors.operators[index]
                    pairs = zip(node.terms, operators, strict=True)
                    sent = [(source, operator.adjoint(c)) for (source, _), operator in pairs]
                    added = c @ self.tensors.biases[index]
                    error = error + gamma(affine_terms(self.tensors, index)) * (
                        c.abs() @ root.magnitudes[index][0]
                    )
                    constant, summed = constant + added, summed + added.abs()
                case Relu():
                    places = self.open[node.source]
                    if len(places):
                        own, before = c[:, places], found.get(node.source)
                        if before is not None:
                            largest = root.highs[node.source][0, places]
                            error = error + gamma(4) * ((before.abs() + own.abs()) @ largest)
                        found[node.source] = own if before is None else before + own
                    sent = [(node.source, c * (root.lows[node.source][0] >= 0))]
                case Gate():
                    sent = [(node.source, c)]
                case Max():
                    raise TypeError(f"node {index} is a Max")
            for source, part in sent:
                before = pending.get(source)
                if before is not None:
                    both = before.abs() + part.abs()
                    error = error + gamma(4) * (both @ root.largest(source)[0])
                pending[source] = part if before is None else before + part
        delta = error * (1 + gamma(4096)) + gamma(4 * additions) * summed + 1e-300
        return found, constant, delta
