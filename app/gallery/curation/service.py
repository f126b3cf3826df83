"""Merge subjects, undo that, and move faces between subjects."""

from __future__ import annotations

from app.gallery.access import GalleryAccess
from app.gallery.curation.schemas import FaceMoveResponse, MergeInfo, MergePage
from app.gallery.embedding_pipeline import ImageEmbedder
from app.gallery.schemas import SubjectInfo
from index.protocol import Storage
from index.types import Merge, MovedFaces
from index.validation import read_timestamp


class GalleryCuration(GalleryAccess):
    """Merges and moves in one gallery. A merge can be undone for `undo_s` seconds."""

    def __init__(self, storage: Storage, embedder: ImageEmbedder, undo_s: float):
        super().__init__(storage, embedder)
        self._undo_s = undo_s

    async def merge(self, collection: str, key: str, absorbed: list[str], actor: str | None) -> MergeInfo:
        """Give the subject all faces and feedback of the absorbed ones; a repeated call returns the first merge.

        Raises:
            NotFound. Unprocessable: the subject is one of the absorbed ones.
        """
        change = self._storage.curation.merge.planned(collection, key, absorbed, undo_s=self._undo_s, actor=actor)
        return await self._commit_response(change, _merge_info)

    async def list_merges(self, collection: str, after: int, limit: int) -> MergePage:
        """Return a page of the merges that can be undone.

        Raises:
            NotFound: no such collection.
        """
        rows = await self._read(lambda: self._storage.curation.merges(collection, after, limit))
        return MergePage(data=list(map(_merge_info, rows)), next=rows[-1].id if len(rows) == limit else None)

    async def undo_merge(self, collection: str, merge: str, actor: str | None) -> MergeInfo:
        """Create the absorbed subjects again; a repeated call returns the result of the first.

        Raises:
            NotFound: no such merge, or the time to undo it is over. Conflict: a later merge must be undone first.
        """
        change = self._storage.curation.undo_merge.planned(collection, merge, actor=actor)
        return await self._commit_response(change, _merge_info)

    async def move_faces(self, collection: str, faces: list[str], key: str, actor: str | None) -> FaceMoveResponse:
        """Move the faces, all or none, to the subject, which is created if it does not exist.

        Raises:
            NotFound.
        """
        change = self._storage.curation.move_faces.planned(collection, faces, key, actor=actor)
        return await self._commit_response(change, _move_response)

    async def crop(self, collection: str, face: str) -> bytes:
        """Return the stored crop of an enrolled face, WebP.

        Raises:
            NotFound: no such face, or the collection keeps no crops.
        """
        return await self._read(lambda: self._gallery.crop(collection, face))


def _merge_info(merge: Merge) -> MergeInfo:
    return MergeInfo(
        id=merge.token,
        subject=merge.subject,
        absorbed=list(merge.absorbed),
        faces=merge.faces,
        created_at=read_timestamp(merge.created_at),
        undo_until=read_timestamp(merge.undo_until),
        undone_at=None if merge.undone_at is None else read_timestamp(merge.undone_at),
    )


def _move_response(moved: MovedFaces) -> FaceMoveResponse:
    return FaceMoveResponse(
        subject=SubjectInfo.from_subject(moved.subject),
        faces=list(moved.faces),
        withdrawn=moved.withdrawn.token if moved.withdrawn else None,
    )
