"""The networks of a query as one graph: in goes what regions range over, out comes all that they compute.

Every network reads its slice of the joint input. Entries that the query sets equal are one entry that several
networks read; an input that it sets equal to an output of a network declared before is that output. Layers of
different networks stand beside each other, so that bounds and searches see the product of the networks as one
network. A network that two names stand for, on the very same entries, is there once. A run is a run of every
network by itself: ONNX Runtime gets each original file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from milpver.errors import QueryError
from milpver.graph import Affine, Gate, Graph, Input, Masks, Max, Node, Relu
from milpver.linear import Conv, Dense, Float, Int, LinearMap, Sparse, selection
from milpver.network import Network
from milpver.property import Declaration, Property, Tensor
from milpver.query import Budget
from milpver.replay import Replay
from milpver.rounding import float32_error

__all__ = ["Joint", "JointReplay", "Part", "join", "load_networks"]

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A network in its place.

    Attributes:
        network: the network.
        reads: for each of its inputs the entry of the joint input or, behind it, of the joint output of the
            parts before, int64 [its inputs].
        gives: which of its outputs are in the joint output, in order, int64.
        gates: its Gate nodes -> those of the joint graph.
    """

    network: Network
    reads: Int
    gives: Int
    gates: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class Joint:
    """Networks as one.

    Attributes:
        graph: the joint graph; its output is the outputs of all parts one after the other.
        parts: at least one, in the order of declarations.
    """

    graph: Graph
    parts: tuple[Part, ...]

    @property
    def paths(self) -> str:
        """The files, for messages."""
        return ", ".join(dict.fromkeys(str(part.network.path) for part in self.parts))

    @cached_property
    def networks(self) -> tuple[Network, ...]:
        """The networks, each once."""
        return tuple({id(part.network): part.network for part in self.parts}.values())

    def float32_error(self, x: Float, removed: Masks) -> Float:
        """How far float32 runs of the networks can lie from the exact ones, float64 [batch, outputs].

        Args:
            x: float64 [batch, inputs] of the joint graph.
            removed: Gate node of the joint graph -> bool [gates] or [batch, gates].
        """
        values = np.concatenate([x, self.graph.evaluate(x, removed)], axis=1)
        errors = np.zeros_like(x)
        for part in self.parts:
            given, before = values[:, part.reads], errors[:, part.reads]
            own = float32_error(part.network, given, _own(part, removed), input_error=before)
            errors = np.concatenate([errors, own[:, part.gives]], axis=1)
        return errors[:, x.shape[1] :]

    def budget(self, own: Budget) -> Budget:
        """A budget of the only network, over the joint graph's nodes.

        Raises:
            QueryError: there are several networks, and the budget removes something.
        """
        if not own.groups:
            return own
        if len(self.parts) > 1:
            raise QueryError(
                f"a budget, and {len(self.parts)} networks",
                needed="one network, where neurons may be removed",
                fix="ask without --budget and --remove, or about one network",
            )
        gates = self.parts[0].gates
        return replace(
            own,
            groups=tuple(
                replace(group, nodes=tuple(gates[node] for node in group.nodes)) for group in own.groups
            ),
            kept=tuple((gates[node], gate) for node, gate in own.kept),
            gone=tuple((gates[node], gate) for node, gate in own.gone),
        )

    def own_masks(self, removed: Masks) -> dict[int, NDArray[np.bool_]]:
        """Masks over the first network's own nodes."""
        return _own(self.parts[0], removed)


class JointReplay:
    """The original files in ONNX Runtime, each by itself.

    Args:
        joint: the networks.
        threads: of ONNX Runtime.
        masked: whether neurons may be removed; nothing is inserted into the files where they may not.

    Raises:
        ModelError: ONNX Runtime does not accept a file.
    """

    def __init__(self, joint: Joint, *, threads: int, masked: bool) -> None:
        self._joint = joint
        self._runs = {
            id(network): Replay(network if masked else replace(network, layers=()), threads=threads)
            for network in joint.networks
        }

    def outputs(self, x: Float32, removed: Masks | None = None) -> Float32:
        """All outputs in float32, float32 [batch, outputs].

        Args:
            x: float32 [batch, inputs] of the joint graph.
            removed: Gate node of the joint graph -> bool [gates] or [batch, gates]; absent: none.
        """
        values = x
        for part in self._joint.parts:
            run = self._runs[id(part.network)]
            found = run.outputs(values[:, part.reads], _own(part, removed or {}))
            values = np.concatenate([values, found[:, part.gives]], axis=1)
        return values[:, x.shape[1] :]


def load_networks(prop: Property, files: Mapping[str, Path], *, channels: bool = False) -> dict[str, Network]:
    """Read the networks of a query from ONNX files.

    Args:
        prop: the property.
        files: the file of each network that is not declared equal to another one, by its declared name; ""
            names the only one.
        channels: whether channels of convolutions may be removed.

    Returns:
        The networks by name; those of one file and one interface are one object.

    Raises:
        QueryError: a network has no file, or a file no network.
        ModelError: a file cannot be read.
    """
    from milpver.onnx_import import load_network  # noqa: PLC0415  only once the property has been read

    if not prop.networks:
        return {"": load_network(_only(prop, files), channels=channels)}
    files = _named(prop, files)
    found: dict[str, Network] = {}
    known: dict[tuple[object, ...], Network] = {}
    for each in (each for each in prop.networks if not each.equal_to):
        copies = [each, *(other for other in prop.networks if other.equal_to == each.name)]
        if all(copy.plain for copy in copies):
            network = load_network(files[each.name], channels=channels)
        else:
            hidden = dict.fromkeys(tensor.onnx for copy in copies for tensor in copy.hidden)
            network = load_network(files[each.name], several=True, hidden=tuple(hidden))
        key = (network.sha256, network.inputs, network.outputs)
        found[each.name] = known.setdefault(key, network)
    return found


def join(prop: Property, networks: Mapping[str, Network]) -> Joint:
    """The networks of a property as one graph.

    Args:
        prop: the property.
        networks: each network that is not declared equal to another one, by its declared name; "" names the
            only one.

    Raises:
        QueryError: a network is missing, or does not fit what is declared, or one too many is there.
    """
    if not prop.networks:
        network = _only(prop, networks)
        _check_count(prop, network, "inputs", prop.inputs, network.graph.inputs)
        _check_count(prop, network, "outputs", prop.outputs, network.graph.outputs)
        return _joined(prop, [(network, np.arange(prop.inputs), np.arange(prop.outputs))])
    networks = _named(prop, networks)
    placed = []
    start = 0
    for each in prop.networks:
        network = networks[each.equal_to or each.name]
        reads = _entries(prop, each, "input", each.inputs, network)
        hidden = _entries(prop, each, "hidden node", each.hidden, network)
        outputs = _entries(prop, each, "output", each.outputs, network)
        # ``reads`` says where each declared entry goes in the network; the graph asks the other way round.
        declared = np.empty(len(reads), dtype=np.int64)
        declared[reads] = start + np.arange(len(reads))
        placed.append((network, declared, np.concatenate([hidden, outputs])))
        start += len(reads)
    for each in prop.networks:
        if each.isomorphic_to and not _isomorphic(networks[each.name], networks[each.isomorphic_to]):
            path, other = networks[each.name].path, networks[each.isomorphic_to].path
            raise QueryError(
                f"{prop.source} declares the network {each.name} isomorphic to {each.isomorphic_to}, and "
                f"{path} has another architecture than {other}",
                needed="the same operators on tensors of the same shapes",
                fix="correct the files, or take isomorphic-to out of the query",
            )
    return _joined(prop, placed)


# ------------------------------------------------------------------------------- what is declared


_T = TypeVar("_T")


def _named(prop: Property, given: Mapping[str, _T]) -> dict[str, _T]:
    """What is given for each network that needs something of its own, by its name."""
    needed = [each.name for each in prop.networks if not each.equal_to]
    if set(given) == {""} and len(needed) == 1:
        return {needed[0]: given[""]}
    called = f"network{'s' if len(needed) > 1 else ''} {', '.join(needed)}"
    for name in given:
        copied = next((each.equal_to for each in prop.networks if each.name == name and each.equal_to), "")
        if copied:
            raise QueryError(
                f"a file for the network {name}, which {prop.source} declares equal to {copied}",
                needed=f"files for the {called}",
                fix=f"leave the one of {name} out",
            )
        if name not in needed:
            said = f"the name {name}" if name else "a file without a name"
            raise QueryError(
                f"{said}, and {prop.source} declares the {called}",
                needed="the names that the query declares",
                fix=" ".join(f"--network {each}=FILE.onnx" for each in needed),
            )
    if missing := [name for name in needed if name not in given]:
        raise QueryError(
            f"no file for the network {missing[0]}, which {prop.source} declares",
            needed=f"files for the {called}",
            fix=f"--network {missing[0]}=FILE.onnx",
        )
    return dict(given)


def _only(prop: Property, given: Mapping[str, _T]) -> _T:
    """What is given for the network of a property in version 1.0."""
    if len(given) != 1:
        raise QueryError(
            f"{len(given)} networks, and {prop.source} is in VNN-LIB {prop.version}, which is about one",
            needed="one network",
            fix="name one, or write the query in VNN-LIB 2.0",
        )
    return next(iter(given.values()))


def _check_count(prop: Property, network: Network, noun: str, declared: int, own: int) -> None:
    """Refuse a property in version 1.0 that does not fit its network."""
    if declared != own:
        raise QueryError(
            f"{prop.source} declares {declared} {noun}, {network.path} has {own}",
            needed=f"as many {noun} as the network has",
            fix="name the network that the property was written for",
        )


def _entries(
    prop: Property, declaration: Declaration, noun: str, tensors: Sequence[Tensor], network: Network
) -> Int:
    """Where the entries of declared tensors are in the network's input or output, int64."""
    ports = network.inputs if noun == "input" else network.outputs
    starts = np.cumsum([0, *(port.size for port in ports)])
    places = [
        (port, int(start))
        for port, start in zip(ports, starts[:-1], strict=True)
        if noun == "input" or port.hidden == (noun == "hidden node")
    ]
    by_name = {port.name: (port, start) for port, start in places}
    named = bool(tensors) and bool(tensors[0].onnx)
    where = f"{prop.source} declares"
    if (len(tensors) != len(places) and noun != "hidden node" and not (named and noun == "output")) or (
        len({tensor.onnx for tensor in tensors}) < len(tensors) and named
    ):
        raise QueryError(
            f"{where} {len(tensors)} {noun}{'s' * (len(tensors) != 1)} of the network {declaration.name}, "
            f"{network.path} has {len(places)}: {', '.join(by_name)}",
            needed=f"each {noun} of the network, once",
            fix="correct the declaration, or name the network that the query was written for",
        )
    found = [np.zeros(0, dtype=np.int64)]
    for place, tensor in enumerate(tensors):
        port, start = by_name.get(tensor.onnx, (None, 0)) if named else places[place]
        if port is None:
            raise QueryError(
                f"{where} {tensor.name} as {tensor.onnx!r}, {network.path} has no such {noun}",
                needed=f"one of {', '.join(by_name)}",
                fix="correct the name",
            )
        if not _fits(tensor.shape, port.shape):
            raise QueryError(
                f"{where} the {noun} {tensor.name} of the network {declaration.name} with shape "
                f"{list(tensor.shape)}, {network.path} has {port.name} of shape {list(port.shape)}",
                needed="the network's shape",
                fix="correct the declaration, or name the network that the query was written for",
            )
        found.append(start + np.arange(tensor.size))
    return np.concatenate(found)


def _fits(declared: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Whether a declared shape stands for a tensor's: the same but for axes of one entry, or flat."""
    thick = tuple(size for size in declared if size != 1)
    return thick == tuple(size for size in own if size != 1) or (
        len(thick) <= 1 and math.prod(declared) == math.prod(own)
    )


def _isomorphic(one: Network, other: Network) -> bool:
    """Whether two files are the same operators on tensors of the same shapes, weights aside."""
    if one is other:
        return True
    edges = [[port.shape for port in (*network.inputs, *network.outputs)] for network in (one, other)]
    return edges[0] == edges[1] and _architecture(one) == _architecture(other)


def _architecture(network: Network) -> list[str]:
    """What computes each output, weights aside: a hash each."""
    import onnx  # noqa: PLC0415  only where a query asks for it

    def said(value: Any) -> str:
        """Integers and texts as they are, weights by their shape."""
        if isinstance(value, onnx.TensorProto):
            array = onnx.numpy_helper.to_array(value)
            return f"{array.dtype}{array.shape}{array.tolist() if array.dtype.kind in 'iub' else ''}"
        return "" if isinstance(value, float) else repr(value)

    graph = onnx.ModelProto.FromString(network.model).graph
    known = {"": ""}
    known.update((entry.name, f"input {place}") for place, entry in enumerate(graph.input))
    known.update((entry.name, said(entry)) for entry in graph.initializer)
    for node in graph.node:
        attributes = sorted(
            (each.name, said(onnx.helper.get_attribute_value(each))) for each in node.attribute
        )
        fed = [known.get(name, "?") for name in node.input]
        text = attributes[0][1] if node.op_type == "Constant" else ""
        if not text:
            text = hashlib.sha256(repr((node.domain, node.op_type, attributes, fed)).encode()).hexdigest()
        known.update((name, f"{text} {place}".removesuffix(" 0")) for place, name in enumerate(node.output))
    return [known[entry.name] for entry in graph.output]


# ------------------------------------------------------------------------------- the graph


def _joined(prop: Property, placed: Sequence[tuple[Network, Int, Int]]) -> Joint:
    """Networks in their places: for each input of one the declared entry, and which outputs are declared."""
    nodes: list[Node] = [Input(prop.free)]
    parts: list[Part] = []
    outputs: list[tuple[int, int]] = []  # the node and the entry that hold each of the joint outputs
    known: dict[tuple[int, bytes], tuple[int, dict[int, int]]] = {}
    for network, declared, gives in placed:
        reads = prop.places[declared]
        key = (id(network), reads.tobytes())
        if key not in known:
            known[key] = _added(nodes, network.graph, reads, outputs)
        end, gates = known[key]
        parts.append(Part(network, reads, gives, gates))
        outputs += [(end, int(entry)) for entry in gives]
    graph = parts[0].network.graph
    alone = len(parts) == 1 and np.array_equal(parts[0].reads, np.arange(graph.inputs))
    if alone and np.array_equal(parts[0].gives, np.arange(graph.outputs)):
        return Joint(graph, (replace(parts[0], gates={node: node for node in graph.gate_nodes}),))
    nodes.append(_gathered(nodes, outputs, "outputs"))
    return Joint(Graph(tuple(nodes)), tuple(parts))


def _gathered(nodes: Sequence[Node], entries: Sequence[tuple[int, int]], name: str) -> Affine:
    """The node of these entries, pairs (node, entry of it)."""
    rows: dict[int, Int] = {}
    for place, (node, entry) in enumerate(entries):
        rows.setdefault(node, np.full(len(entries), -1, dtype=np.int64))[place] = entry
    terms = tuple((node, selection(picked, nodes[node].size)) for node, picked in rows.items())
    return Affine(terms, np.zeros(len(entries)), name)


def _added(
    nodes: list[Node], graph: Graph, reads: Int, outputs: Sequence[tuple[int, int]]
) -> tuple[int, dict[int, int]]:
    """Add the nodes of a network: its last one, and its gates.

    Args:
        nodes: those that are there.
        graph: the network.
        reads: as ``Part`` has it.
        outputs: where the joint outputs of the parts before are: nodes and entries.
    """
    width = nodes[0].size
    whole = len(reads) == width and np.array_equal(reads, np.arange(width))
    direct = whole or (len(np.unique(reads)) == len(reads) and bool(np.all(reads < width)))
    moved = {0: 0}
    gates: dict[int, int] = {}

    def chosen() -> int:
        """The node that holds what the network reads."""
        if not whole and moved[0] == 0:
            entries = [(0, int(each)) if each < width else outputs[each - width] for each in reads]
            nodes.append(_gathered(nodes, entries, "input"))
            moved[0] = len(nodes) - 1
        return moved[0]

    for index, node in enumerate(graph.nodes[1:], start=1):
        match node:
            case Affine(terms=terms):
                placed = []
                for source, linear in terms:
                    if source == 0 and direct and not whole and not isinstance(linear, Conv):
                        placed.append((0, _widened(linear, reads, width)))
                    else:
                        placed.append((chosen() if source == 0 else moved[source], linear))
                added: Node = replace(node, terms=tuple(placed))
            case Relu(source=source) | Max(source=source) | Gate(source=source):
                added = replace(node, source=chosen() if source == 0 else moved[source])
            case Input():
                raise ValueError("a graph has one input")
        nodes.append(added)
        moved[index] = len(nodes) - 1
        if isinstance(node, Gate):
            gates[index] = moved[index]
    return len(nodes) - 1, gates


def _widened(linear: Dense | Sparse, reads: Int, width: int) -> LinearMap:
    """A map that reads some entries of a vector of ``width``, each at most once; nothing is rounded."""
    if isinstance(linear, Dense):
        weight = np.zeros((linear.outputs, width))
        weight[:, reads] = linear.weight
        return Dense(weight)
    return Sparse(sparse.csr_array(linear.csr @ selection(reads, width).matrix))


def _own(part: Part, removed: Masks) -> dict[int, NDArray[np.bool_]]:
    """Masks over a network's own nodes."""
    return {own: removed[node] for own, node in part.gates.items() if node in removed}
