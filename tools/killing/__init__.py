"""Kills of commands at the worst moments. `tools/kill_harness.py` is the command."""
