"""``--save-witness``: worst cases as files that anyone can replay with ONNX Runtime alone."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.errors import QueryError
from milpver.network import Network
from milpver.replay import pruned_model
from milpver.verdict import Verdict

__all__ = ["WitnessFolder"]

_README = """\
Worst cases that milpver found. INDEX is the input's position in its data file.

INDEX_pruned.onnx  the network with the worst removal of neurons in it: a constant
                   multiplication by 0 and 1 behind each layer that loses neurons.
INDEX_input.npz    x        the worst input, ready for ONNX Runtime
                   label    the class that it should get
                   target   the class that beats it, or comes closest to
                   margin   score of label - score of target, in float64
                   removed  [layer from 1, neuron from 0] of each removed neuron; as
                            texts where channels are removed (conv1)

Replay:

  import numpy, onnxruntime
  model = "{example}"
  session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
  witness = numpy.load("INDEX_input.npz")
  scores = session.run(None, {{{name!r}: witness["x"]}})[0]
  scores[..., witness["label"]] - scores[..., witness["target"]]   # the margin, in float32
{notes}"""

_NORMALISED = """
x is in the data's units. The normalisation (--mean, --std) is part of the saved ONNX files;
x_normalised is what the original file gets, for replays on that one.
"""

_SOFTMAX = """
The file ends in a softmax: the scores above are probabilities, ordered as the logits are; the margin
is one of logits.
"""


class WitnessFolder:
    """A folder that takes the worst case of each input.

    Args:
        folder: made where it is missing.
        network: the network that was asked about.

    Raises:
        QueryError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, network: Network) -> None:
        self._folder = folder
        self._network = network
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error

    def save(self, verdict: Verdict) -> bool:
        """Write a verdict's witness; False where it has none.

        Raises:
            QueryError: the files cannot be written.
        """
        if verdict.witness_float32 is None:
            return False
        if verdict.question == "margin":
            content = pruned_model(self._network, verdict.mask or {})
            self._write(f"{verdict.index}_pruned.onnx", content)
            example = "INDEX_pruned.onnx"
        elif self._network.mean is not None:
            self._write("network.onnx", pruned_model(self._network, {}))
            example = "network.onnx"
        else:
            example = self._network.path.name
        self._write(f"{verdict.index}_input.npz", self._arrays(verdict, verdict.witness_float32))
        notes = _NORMALISED * (self._network.mean is not None) + _SOFTMAX * self._network.softmax
        text = _README.format(example=example, name=self._network.input_name, notes=notes)
        self._write("README.txt", text.encode())
        return True

    def _arrays(self, verdict: Verdict, x: NDArray[np.float32]) -> bytes:
        """The input with what is claimed of it, as an npz archive."""
        network = self._network
        arrays: dict[str, Any] = {
            "x": self._shaped(x),
            "label": np.int64(verdict.label),
            "target": np.int64(-1 if verdict.target is None else verdict.target),
            "margin": np.float64(
                np.nan if verdict.witness_margin_float64 is None else verdict.witness_margin_float64
            ),
            "removed": _pairs(verdict.removed or ()),
        }
        if network.mean is not None and network.std is not None:
            shifted = np.subtract(x, network.mean.astype(np.float32), dtype=np.float32)
            normalised = np.divide(shifted, network.std.astype(np.float32), dtype=np.float32)
            arrays["x_normalised"] = self._shaped(normalised)
        packed = io.BytesIO()
        np.savez(packed, **arrays)
        return packed.getvalue()

    def _shaped(self, x: NDArray[np.float32]) -> NDArray[np.generic]:
        """An input as ONNX Runtime takes it: type and shape of the file, copies filling a fixed batch."""
        network = self._network
        shaped = x.reshape(network.input_shape).astype(network.dtype)
        return shaped if network.batch == 0 else np.repeat(shaped[None], network.batch or 1, axis=0)

    def _write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        path = self._folder / name
        part = self._folder / f".{name}.{os.getpid()}.part"
        try:
            part.write_bytes(content)
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> QueryError:
    return QueryError(
        f"--save-witness: {path} cannot be written ({error.strerror or type(error).__name__})",
        needed="a folder that can be written, with room",
        fix="name another folder, or free the disk",
    )


def _pairs(removed: Sequence[tuple[int | str, int]]) -> NDArray[np.int64] | NDArray[np.str_]:
    """Removed gates, int64 [n, 2]; as texts where channels of a convolution are among them."""
    if any(isinstance(layer, str) for layer, _ in removed):
        return np.array([(str(layer), str(gate)) for layer, gate in removed], dtype=np.str_)
    return np.array(removed, dtype=np.int64).reshape(-1, 2)
