"""ONNX of every precision: fp32, fp16, int8, low bit."""
