"""The papers' program, to the letter; everything else is measured against it and it stays as it is.

Tjeng's ReLU with a binary for every neuron, McCormick's masks for every neuron of a layer with a budget,
the fixed input's constants as fixed columns. With ``--bounds interval`` the big-M constants ignore the
budget, as in the neuron-pruning paper's eq. 9.
"""

from __future__ import annotations

from milpver.encoding import Encoding
from milpver.encodings.mask_mccormick import mask_mccormick
from milpver.encodings.max_bigm import max_bigm
from milpver.encodings.relu_bigm import relu_bigm
from milpver.graph import Gate, Max, Relu

ENCODING = Encoding("reference", {Relu: relu_bigm, Gate: mask_mccormick, Max: max_bigm})
