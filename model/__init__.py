"""The networks: transformer, text encoder and autoencoders. Torch, einops and our kernels; nothing else."""
