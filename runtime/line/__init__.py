"""A production line: parts are triggered, seen, judged in time, recorded, and told to the PLC.

One invariant holds everywhere: parts = accept + reject + fault + open, their numbers have no gap, and a fault is never
an accept. `parts` has the words, `station` the life of a part, `journal` the record of truth; `sources` bring images,
`outputs` signal verdicts in time, `sinks` tell others from the journal.
"""
