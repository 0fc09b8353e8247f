"""Load, condition, sample, super-resolve, decode, mux: written once, for the command line and the nodes."""
