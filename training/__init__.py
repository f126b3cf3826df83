"""Offline training: scripts that write the weights the service loads. Imports models, never app.

Each module here is a command, `python -m training.NAME`.
"""
