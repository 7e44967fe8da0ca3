"""flawscope: visual inspection that learns good parts, ships as one bundle and runs without PyTorch."""

__version__ = "0.1.0"
