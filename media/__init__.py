"""Pictures, sound and films: read, resample, convert and mux."""
