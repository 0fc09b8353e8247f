"""CUDA C++ kernels for machines without Triton, compiled by the NVRTC that torch brings when they first run."""
