"""The domain of collections: enrol subjects, search for them (1:N), re-embed and erase them.

A collection holds the vectors of one embedder. A subject is a person or object under an id that the caller chooses.
`unknown` is the result if no subject is similar enough (open-set identification).
"""
