"""Models at run time: load, reload and unload them, batch the items of concurrent requests, select a runtime.

A runtime executes a network: torch, OpenVINO or CUDA graphs. A submodel is a network, or a part of it, with one queue.
"""
