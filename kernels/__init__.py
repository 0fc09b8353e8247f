"""Operations of the network: each a plain definition, later with faster ways to run it."""
