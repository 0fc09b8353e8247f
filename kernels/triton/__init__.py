"""Triton kernels, each imported by the file of its operation when it first runs."""
