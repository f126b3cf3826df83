"""Servers that Vestibule is compared with, a file each: started as `python -m benchmarks.serving.peer_servers.NAME`.

Each takes the model's folder, a port and what is to compute (`torch` or `openvino`), in an environment that has what
benchmarks/serving/requirements-peers.txt names, and of Vestibule's packages needs `models` only.
"""
