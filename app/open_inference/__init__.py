"""The Open Inference Protocol (`/v2`, as of KServe and Triton): tensors in and out of the networks."""
