"""Encrypted collections: AES-256-GCM for values and files.

Each collection has a random data key, which is stored wrapped (encrypted) by the operator's key.
"""
