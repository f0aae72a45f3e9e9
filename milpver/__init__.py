"""Exact verification of neural networks against pruning and perturbation."""

__version__ = "0.1.0"
