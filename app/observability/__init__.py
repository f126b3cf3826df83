"""Prometheus metrics, and the timings of a request for the `Server-Timing` header."""
