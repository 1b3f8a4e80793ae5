"""ONNX Runtime sessions: which run where, how alike their outputs are, how long they take."""
