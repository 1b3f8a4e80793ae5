"""tersor: make a PyTorch CNN small and fast, prove that it still works, ship it as ONNX."""

__version__ = "0.1.0"
