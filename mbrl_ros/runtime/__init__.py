"""From dynamics.onnx and a task to costs of action sequences, on a runtime of choice. No torch."""
