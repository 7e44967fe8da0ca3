"""Signals to the PLC: they have a deadline, unlike sinks. One file for each kind, and a row in `table`."""
