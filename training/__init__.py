"""Making the demo set: a drawn world, the pack's own networks trained on it, and what came out, measured."""
