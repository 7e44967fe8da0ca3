"""Readers of the journal that tell others, at least once and in order. One file for each kind, and a row in `table`."""
