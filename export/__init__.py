"""From a training run to a bundle: torch → ONNX → size proof → parity gate."""
