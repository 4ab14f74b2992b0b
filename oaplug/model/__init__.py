"""Encoder + head = network; checkpoints, provenance and the run folder."""
