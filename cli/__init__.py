"""The command line: arguments and progress, nothing else."""
