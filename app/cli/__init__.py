"""The `vestibule` command: run the service, call it, and manage its keys and its gallery."""
