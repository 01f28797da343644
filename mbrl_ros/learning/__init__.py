"""From a dataset to dynamics.onnx. The only package that imports torch."""
