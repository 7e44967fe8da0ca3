"""The record of truth: a SQLite file with parts, events and cursors, chained by hashes."""
