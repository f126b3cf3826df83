"""The HTTP service: one package per domain, and the packages that all domains use. The only part that imports FastAPI.

A domain has `routes` (translate HTTP), `service` (does the work) and `schemas` (requests and responses).
"""
