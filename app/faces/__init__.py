"""The domain of faces: detect them, embed them as vectors, and verify whether two show the same person (1:1).

An embedding is a vector of length 1; faces of the same person have nearby vectors.
"""
