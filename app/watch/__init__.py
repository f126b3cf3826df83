"""Watch a camera: follow faces, ask the service who they are, and store one sighting for each passage.

The watcher is a process of its own that reaches the service through the Python client only, so that cameras scale apart
from the service. It imports neither torch nor the networks.
"""
