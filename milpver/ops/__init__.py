"""ONNX operators, grouped by family; each module has a table ``LOWERINGS`` (contract: milpver.op)."""
