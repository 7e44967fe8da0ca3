"""From a training run to a bundle: torch → ONNX → size check → parity gate."""
