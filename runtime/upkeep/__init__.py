"""Upkeep of the memory bank of an exported bundle: rows are added, taken out and pruned without PyTorch and onnx."""
