"""NVIDIA GPUs through TensorRT: explicit QDQ that keeps its published rules."""
