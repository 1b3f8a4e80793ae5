"""The .tsr file: any ONNX file, losslessly smaller."""
