"""Sweeps: many runs of the command line from one file, resumable, one row of results a run."""
