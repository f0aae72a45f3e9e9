"""Training of networks that survive pruning: architectures, methods, checkpoints, export to ONNX."""
