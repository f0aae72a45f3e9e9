"""``milpver info``: what is in a network file, and how ``--budget`` counts its layers."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Print what is in a network file."""
    found = describe(Path(arguments.model))
    text = json.dumps(found) if arguments.json else "\n".join(_lines(found))
    sys.stdout.write(f"{text}\n")
    return 0


def describe(path: Path) -> dict[str, Any]:
    """What is in a network file, as ``--json`` prints it.

    Raises:
        ModelError: the file cannot be read, or cannot be verified.
    """
    import onnx  # noqa: PLC0415  0.2 s, which `--help` must not cost

    from milpver.graph import Relu  # noqa: PLC0415  NumPy and SciPy
    from milpver.onnx_import import load_network  # noqa: PLC0415  ONNX

    network = load_network(path, channels=True)
    model = onnx.ModelProto.FromString(network.model)
    opsets = {entry.domain or "ai.onnx": int(entry.version) for entry in model.opset_import}
    return {
        "model": str(path),
        "sha256": network.sha256,
        "opset": opsets,
        "input": {
            "name": network.input_name,
            "shape": list(network.input_shape),
            "dtype": network.dtype,
            "batch": _batch(network.batch),
        },
        "output": {"name": network.output_name, "classes": network.graph.outputs},
        "softmax": network.softmax,
        "operators": dict(sorted(network.operators.items())),
        "parameters": network.parameters,
        "relus": sum(node.size for node in network.graph.nodes if isinstance(node, Relu)),
        "layers": [
            {
                "number": layer.number,
                "name": layer.name,
                "width": layer.width,
                "shape": list(layer.shape),
            }
            for layer in network.layers
        ],
        "conv_layers": [
            {"label": layer.label, "name": layer.name, "channels": layer.width, "shape": list(layer.shape)}
            for layer in network.conv_layers
        ],
    }


def _batch(batch: int | None) -> str | int:
    """The batch dimension in a word, or its size."""
    return "free" if batch is None else "none" if batch == 0 else batch


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    given = found["input"]
    batch = f"a batch of {given['batch']}" if isinstance(given["batch"], int) else f"batch {given['batch']}"
    shape = " x ".join(map(str, given["shape"])) or "a single number"
    softmax = "  (a softmax follows; it is dropped, questions are about the logits)" * found["softmax"]
    yield found["model"]
    yield f"sha256      {found['sha256']}"
    yield f"opset       {', '.join(f'{domain} {version}' for domain, version in found['opset'].items())}"
    yield f"input       {given['name']}: {shape}, {given['dtype']}, {batch}"
    yield f"output      {found['output']['name']}: {found['output']['classes']} classes{softmax}"
    yield f"operators   {', '.join(f'{count} {name}' for name, count in found['operators'].items())}"
    yield f"parameters  {found['parameters']}"
    yield f"ReLUs       {found['relus']}"
    layers, convs = found["layers"], found["conv_layers"]
    if not layers:
        yield "gateable layers: none (hidden fully connected layers with an activation are)"
    else:
        yield "gateable layers, one entry of --budget each:"
        wide = max(len(layer["name"]) for layer in layers)
        for layer in layers:
            yield f"  {layer['number']:>2}  {layer['name']:<{wide}}  {layer['width']} neurons"
    if convs:
        yield f"convolutions, whose channels --budget names (--budget {convs[0]['label']}:1):"
        wide = max(len(layer["name"]) for layer in convs)
        for layer in convs:
            yield f"  {layer['label']:>5}  {layer['name']:<{wide}}  {layer['channels']} channels"
