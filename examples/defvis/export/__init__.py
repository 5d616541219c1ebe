"""Trained models outside PyTorch: written as ONNX or as a compiled package, and read back."""
