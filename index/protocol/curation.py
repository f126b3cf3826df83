"""Correcting who is who: merge subjects, undo that, move faces between subjects, and read enrolled vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from index.protocol.changes import changes
from index.types import Merge, MovedFaces, SubjectVectors

UNDO_S = 7 * 86_400.0  # how long a merge can be undone by default


class Curation(Protocol):
    """Merges and moves in a gallery. All methods raise NotFoundError and LockedError as `Gallery` does.

    Each change is one transaction with one event in the audit log.
    """

    @changes
    def merge(
        self,
        collection: str,
        key: str,
        absorbed: Sequence[str],
        *,
        undo_s: float = UNDO_S,
        actor: str | None = None,
    ) -> Merge:
        """Give the subject `key` all faces, rejected faces and sightings of those `absorbed`, which then do not exist.

        The subject keeps its own name, metadata and expiry. Those of the absorbed subjects are kept for `undo_s`
        seconds, or until the first of them would have expired; then maintenance erases them, with the merge's token as
        the token of the receipt. Until then an absorbed subject cannot be erased: `Gallery.remove_subject` raises
        ConflictError. A face that is enrolled under an absorbed key afterwards creates that subject again.

        A rejected face that is also an enrolled face of another of the subjects contradicts the merge: it does not
        affect searches any more, unless the merge is undone. All others rule out the merged subject from now on.

        A repeated call returns the merge of the first, while that can be undone.

        Raises:
            InvalidError: `absorbed` is empty or contains `key`.
        """
        ...

    @changes
    def undo_merge(self, collection: str, token: str, *, actor: str | None = None) -> Merge:
        """Create the absorbed subjects again, with their ids, properties, faces, rejected faces and sightings.

        Faces that were enrolled for the kept subject since the merge, or moved to or from it, stay where they are. If a
        subject was created under an absorbed key meanwhile, that subject gets the faces and keeps its own properties.

        A repeated call returns the result of the first, while the merge could be undone.

        Raises:
            NotFoundError: there is no such merge, or the time to undo it is over. ConflictError: the kept subject was
            absorbed by a later merge, which must be undone first.
        """
        ...

    def merges(self, collection: str, after: int = 0, limit: int = 100) -> list[Merge]:
        """Return at most `limit` merges with ids above `after` that can be undone, oldest first."""
        ...

    @changes
    def move_faces(self, collection: str, faces: Sequence[str], key: str, *, actor: str | None = None) -> MovedFaces:
        """Move the faces with these tokens, all or none, to the subject `key`, which is created if it does not exist.

        The subjects that had the faces stay, even without a face. The subject's rejected faces that are the moved faces
        are erased. Nothing happens to faces that are the subject's already, so the call can be repeated.

        Raises:
            InvalidError: there is no face, or `key` cannot be stored.
        """
        ...

    def face(self, collection: str, face: str) -> SubjectVectors:
        """Return the subject of the face with this token, and the face's vector [1, D]."""
        ...

    def subject_vectors(self, collection: str, ids: Sequence[int], *, faces: int = 16) -> list[SubjectVectors]:
        """Return those of the subjects with these ids that exist, by id, each with its first `faces` faces.

        Subjects without a face have no vectors: [0, D].
        """
        ...
