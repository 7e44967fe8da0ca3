"""The stages of `tools/gpu_check.py`: each a process of its own, on a GPU, or by its twin on a CPU.

What starts and records stages (`runner`, `table`, `document`, `child`, `here`) needs nothing but Python's own library:
it runs on a machine that has no package of ours yet.
"""
