"""From noise to signal: schedules, guidance and solvers, on callables and never on a network."""
