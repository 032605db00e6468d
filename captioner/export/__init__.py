"""Export to ONNX: the graphs of a captioner, and a runner for them that needs no PyTorch."""
