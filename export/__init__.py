"""What leaves the house: ONNX files, packed files, parity, timing, bundles."""
