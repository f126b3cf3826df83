"""The gallery: durable storage of face vectors, and nearest-neighbour search over them. Never imports torch or FastAPI.

`protocol`, `types` and `errors` are the interface that app/ uses; `embedded` implements it.
"""
