"""From dynamics.onnx and a task to costs of action sequences, on ONNX Runtime. No torch."""
