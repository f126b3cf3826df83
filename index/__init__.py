"""The gallery: durable storage of face vectors, and nearest-neighbour search over them. Never imports torch or FastAPI.

`protocol`, `types` and `errors` are what app/ needs of any gallery; `embedded` is the implementation.
"""
