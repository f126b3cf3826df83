"""Search a collection for embeddings that were computed earlier, or for faces that are enrolled in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.errors import Conflict
from app.gallery.access import conflict_as_pipeline_changed, retry_once
from app.gallery.search import Identification, search_response, searched_face
from app.gallery.search_schemas import Searched, SearchedVectors, SearchResponse, VectorSearchParams
from index.validation import unit_vectors


class VectorSearch(Identification):
    """Identifies vectors, each by itself."""

    @retry_once
    async def search(self, body: SearchedVectors, params: VectorSearchParams, actor: str | None) -> SearchResponse:
        """Return the candidates of each embedding, or of each enrolled face, without the subject that has that face.

        Raises:
            NotFound: no such collection or face. Conflict: the collection has another pipeline than the embeddings.
            Unprocessable: an embedding has another number of dimensions, or only zeros.
        """
        target = await self._target(params)
        collection, rule = target.collection, target.rule(params)
        if params.fingerprint not in (None, collection.fingerprint):
            raise Conflict(f"{params.collection!r} holds vectors of {collection.fingerprint}")

        def find() -> list[Searched]:
            excluded: Sequence[int | None] = ()
            if body.faces is not None:
                enrolled = [self._storage.curation.face(params.collection, face) for face in body.faces]
                vectors = np.concatenate([face.vectors for face in enrolled])
                excluded = [face.subject.id for face in enrolled]
            else:
                vectors = unit_vectors(body.embeddings or [], collection.dimensions)
            decisions = self._decide(target, vectors, params, rule, actor, repeated=True, excluded=excluded)
            return [
                Searched(index=index, faces=[searched_face(None, decision, rule, params.limit)])
                for index, decision in enumerate(decisions)
            ]

        with conflict_as_pipeline_changed():
            return search_response(target, rule, params.fpir, await self._read(find))
