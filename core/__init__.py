"""flawscope: visual anomaly detection, trained on normal images, shipped as one bundle, run without PyTorch."""

__version__ = "0.1.0"
