"""A campaign with everything loaded: what is asked, and under which key each answer is kept.

A *cell* is one variant of a question with a network, data, solver, encoding and bounds; it asks the same
about each of its inputs. A query's key is a hash of everything that its answer depends on: the network's file
and normalisation, the input, its label, the domain, the question and its parameters, solver, version and
options, encoding, bounds, gap and seed. Limits (time, memory, threads) are no part of it: they say how far an
answer got, and are kept beside those that did not get to the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver import __version__, registry
from milpver.campaign.spec import Complaint, DataSpec, NetworkSpec, QuestionSpec, Spec, SpecError
from milpver.data import Dataset, check_labels, fit_domain, fit_inputs, load_data, select
from milpver.errors import MilpverError
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.query import NATIVE, Domain, Options, check_inputs

__all__ = ["KEY_VERSION", "Cell", "Plan", "Source", "canonical", "make_plan", "solver_version"]

#: Goes into every key: what a key is made of.
KEY_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Inputs as a network gets them.

    Attributes:
        inputs: float32 [n, inputs].
        labels, indices: of these; the positions in the data file.
        hashes: SHA-256 of each input as little-endian float32.
        domain: limits of the inputs, or None.
        shape: of one input, as the network has it.
    """

    inputs: NDArray[np.float32]
    labels: tuple[int, ...]
    indices: tuple[int, ...]
    hashes: tuple[bytes, ...]
    domain: Domain | None
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One query about many inputs.

    Attributes:
        number: place in the campaign.
        id: hash of all but the input.
        network, data, question: their names in the spec.
        kind: of question.
        raw: the parameters as the spec has them.
        parameters: the same for this network.
        solver, solver_version, encoding, bounds: who answers.
        options: how, limits included.
    """

    number: int
    id: str
    network: str
    data: str
    question: str
    kind: str
    raw: Mapping[str, Any]
    parameters: Mapping[str, Any]
    solver_version: str
    options: Options

    def key(self, input_hash: bytes, label: int) -> bytes:
        """The key of one query, 32 bytes."""
        return hashlib.sha256(
            bytes.fromhex(self.id) + input_hash + label.to_bytes(8, "big", signed=True)
        ).digest()

    def description(self) -> dict[str, Any]:
        """As the store keeps it."""
        options = self.options
        return {
            "network": self.network,
            "data": self.data,
            "question": self.question,
            "kind": self.kind,
            "raw": dict(self.raw),
            "parameters": dict(self.parameters),
            "solver": options.solver,
            "solver_version": self.solver_version,
            "encoding": options.encoding,
            "bounds": options.bounds,
            "solver_options": dict(options.solver_options or {}),
            "gap": options.gap,
            "seed": options.seed,
            "decide": options.decide,
            "device": options.device,
            "timeout": options.timeout,
            "memory": options.memory,
            "threads": options.threads,
        }


@dataclass(frozen=True, eq=False)
class Plan:
    """A campaign that can start.

    Attributes:
        spec: where it came from.
        networks: by name.
        sources: by names of network and data.
        cells: in order.
    """

    spec: Spec
    networks: Mapping[str, Network]
    sources: Mapping[tuple[str, str], Source]
    cells: tuple[Cell, ...]

    def source(self, cell: Cell) -> Source:
        """The inputs of a cell."""
        return self.sources[cell.network, cell.data]

    @property
    def queries(self) -> int:
        """Number of queries."""
        return sum(len(self.source(cell).labels) for cell in self.cells)

    def rows(self) -> Iterator[tuple[int, int, int, int, bytes, bytes]]:
        """(position, cell, index, label, key, input hash) of every query."""
        position = 0
        for cell in self.cells:
            source = self.source(cell)
            for index, label, input_hash in zip(source.indices, source.labels, source.hashes, strict=True):
                yield position, cell.number, index, label, cell.key(input_hash, label), input_hash
                position += 1

    @cached_property
    def digest(self) -> str:
        """Hash of the whole campaign; the same plan has the same."""
        found = hashlib.sha256()
        for cell in self.cells:
            source = self.source(cell)
            found.update(canonical(cell.description() | {"id": cell.id}))
            found.update(b"".join(source.hashes))
            found.update(np.asarray([source.indices, source.labels], dtype="<i8").tobytes())
        return found.hexdigest()


def canonical(value: Any) -> bytes:
    """JSON of a value, the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def make_plan(spec: Spec) -> Plan:
    """Load networks and data, and check that everything fits.

    Raises:
        SpecError: something cannot be loaded, or does not fit; all of it is named.
    """
    complaints: list[Complaint] = []
    networks = {each.name: _network(each, _channels(spec, each.name), complaints) for each in spec.networks}
    datasets = {each.name: _dataset(each, complaints) for each in spec.data}
    sources: dict[tuple[str, str], Source] = {}
    cells: list[Cell] = []
    lines = {each.name: each for each in spec.data}
    for question in spec.questions:
        for name in question.networks:
            network = networks[name]
            if network is None:
                continue
            fitted = _fitted(question, network, complaints)
            for data in question.data:
                dataset = datasets[data]
                if dataset is None:
                    continue
                if (name, data) not in sources:
                    source = _source(lines[data], dataset, network, complaints)
                    if source is None:
                        continue
                    sources[name, data] = source
                cells += _cells(
                    spec, question, (name, network), (data, sources[name, data]), fitted, len(cells)
                )
    if complaints:
        raise SpecError(spec.path, complaints)
    return Plan(spec, {k: v for k, v in networks.items() if v is not None}, sources, tuple(cells))


def _channels(spec: Spec, network: str) -> bool:
    """Whether a question about a network may be about channels of its convolutions."""
    asked = [each for each in spec.questions if network in each.networks]
    return any(each.kind.channels(variant.raw) for each in asked for variant in each.variants)


def _network(spec: NetworkSpec, channels: bool, complaints: list[Complaint]) -> Network | None:
    try:
        network = load_network(spec.path, channels=channels)
        if spec.mean is None and spec.std is None:
            return network
        return network.normalised(spec.mean or (0.0,), spec.std or (1.0,))
    except MilpverError as error:
        complaints.append(Complaint(spec.line, _said(error)))
        return None


def _dataset(spec: DataSpec, complaints: list[Complaint]) -> Dataset | None:
    try:
        return load_data(spec.path, keys=spec.keys, split=spec.split, scale=spec.scale, domain=spec.domain)
    except MilpverError as error:
        complaints.append(Complaint(spec.line, _said(error)))
        return None


def _source(spec: DataSpec, dataset: Dataset, network: Network, complaints: list[Complaint]) -> Source | None:
    """The inputs that the spec chooses, as a network gets them."""
    line = spec.line
    try:
        check_labels(dataset.labels, network.graph.outputs, dataset.source)
        line = spec.index_line
        indices = select(dataset, spec.index)
        line = spec.line
        shape = network.input_shape
        inputs = fit_inputs(dataset.inputs[list(indices)], shape, layout=spec.layout, source=dataset.source)
        domain = dataset.domain
        if domain is not None:
            domain = fit_domain(domain, shape, layout=spec.layout, source=dataset.source)
        labels = tuple(int(dataset.labels[index]) for index in indices)
        check_inputs(network, inputs, labels, domain)
    except MilpverError as error:
        complaints.append(Complaint(line, _said(error)))
        return None
    rows = np.ascontiguousarray(inputs, dtype="<f4")
    hashes = tuple(hashlib.sha256(row.tobytes()).digest() for row in rows)
    return Source(inputs, labels, indices, hashes, domain, shape)


def _fitted(
    question: QuestionSpec, network: Network, complaints: list[Complaint]
) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Raw and fitted parameters of each variant."""
    found = []
    for variant in question.variants:
        try:
            found.append((variant.raw, question.kind.fit(variant.raw, network)))
        except MilpverError as error:
            complaints.append(Complaint(variant.line_for(error) or question.line, _said(error)))
    return found


def _said(error: MilpverError) -> str:
    return f"{error.found} (needed: {error.needed})"


def _cells(
    spec: Spec,
    question: QuestionSpec,
    network: tuple[str, Network],
    data: tuple[str, Source],
    fitted: Sequence[tuple[Mapping[str, Any], dict[str, Any]]],
    start: int,
) -> list[Cell]:
    """Every combination of variant, solver, encoding and bounds."""
    found: list[Cell] = []
    for raw, parameters in fitted:
        for solver in question.solvers:
            version = solver_version(solver)
            for encoding in question.encodings:
                for bounds in question.bounds:
                    options = Options(
                        solver=solver,
                        encoding=encoding,
                        bounds=bounds,
                        timeout=question.timeout,
                        gap=question.gap,
                        threads=spec.threads,
                        memory=spec.memory,
                        seed=spec.seed,
                        device=spec.device,
                        decide=question.kind.decide,
                        solver_options=dict(question.solver_options) or None,
                    )
                    content = {
                        "version": KEY_VERSION,
                        "network": network_id(network[1]),
                        "domain": domain_id(data[1].domain),
                        "kind": question.kind.name,
                        "parameters": parameters,
                        "solver_version": version,
                        "options": _that_matter(options),
                    }
                    found.append(
                        Cell(
                            number=start + len(found),
                            id=hashlib.sha256(canonical(content)).hexdigest(),
                            network=network[0],
                            data=data[0],
                            question=question.name,
                            kind=question.kind.name,
                            raw=raw,
                            parameters=parameters,
                            solver_version=version,
                            options=options,
                        )
                    )
    return found


#: Options that no answer depends on once it is finished: limits, where bounds are computed, where logs go.
_LIMITS = frozenset({"timeout", "threads", "memory", "device", "solver_log"})


def _that_matter(options: Options) -> dict[str, Any]:
    """The options that are part of a key; one that is added to them is, until it is said not to be."""
    values = {each.name: getattr(options, each.name) for each in fields(options) if each.name not in _LIMITS}
    return values | {"solver_options": dict(options.solver_options or {})}


def network_id(network: Network) -> str:
    """Hash of a network's file and its normalisation."""
    found = hashlib.sha256(network.sha256.encode("ascii"))
    for row in (network.mean, network.std):
        if row is not None:
            found.update(np.ascontiguousarray(row, dtype="<f8").tobytes())
    return found.hexdigest()


def domain_id(domain: Domain | None) -> Any:
    """A domain in a key: two numbers, or a hash of its limits."""
    if domain is None:
        return None
    low, high = domain
    if isinstance(low, np.ndarray):
        ends = np.ascontiguousarray(np.stack([low, np.asarray(high)]), dtype="<f8")
        return hashlib.sha256(ends.tobytes()).hexdigest()
    return [float(low), float(np.asarray(high))]


def solver_version(name: str) -> str:
    """What a solver's answers depend on: its version, and for the native search also that of its fall-back.

    "" where the solver is not there: once it is, its queries have other keys.
    """
    backend = NATIVE.get(name, name)
    try:
        version = str(registry.load("solvers", backend).availability().version)
    except Exception:  # a broken plug-in says so when it is run
        version = ""
    return f"{__version__} ({backend} {version})" if name in NATIVE else version
