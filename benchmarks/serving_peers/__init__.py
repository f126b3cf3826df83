"""Servers that Vestibule is compared with, a file each: started as `python -m benchmarks.serving_peers.NAME`.

Each takes the model's folder, a port and what is to compute (`torch` or `openvino`), in an environment that has what
benchmarks/requirements-serving-peers.txt names, and of Vestibule's packages needs `models` only.
"""
