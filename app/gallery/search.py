"""Who is this? The use cases that compare a picture with who is enrolled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import BadRequest, Unprocessable, VestibuleError
from app.faces.service import most_prominent
from app.gallery.embedding_pipeline import Pipeline, Seen, Sight, compared, described, keeps_crops, settled
from app.gallery.open_set import Decision, Rule, decide_by_steps, of_each
from app.gallery.schemas import (
    Candidate,
    Chosen,
    ErasureReceipt,
    FeedbackInfo,
    FeedbackList,
    Searched,
    SearchedCollection,
    SearchedFace,
    SearchParams,
    SearchReason,
    SearchResponse,
    SubjectVerification,
    SubjectVerifyParams,
    moment,
)
from app.images.uploads import Images
from app.schemas import OperatingPoint
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query import metadata_filter
from index.embedded.query.feedback import Feedback, Rejection
from index.embedded.query.metadata_filter import Where
from index.embedded.query.search import compare, search
from index.embedded.store.records import Collection
from index.protocol import Match
from models.matching import Matching


class Recognition:
    """Search, verify, and be told of errors, over one gallery; `actor` as in `Galleries`."""

    def __init__(self, pipeline: Pipeline, gallery: EmbeddedGallery):
        self._pipeline = pipeline
        self._ask = pipeline.ask
        self._gallery = gallery
        self._feedback = Feedback(gallery)

    async def search(self, pictures: Images, params: SearchParams, actor: str | None) -> SearchResponse:
        """Who in the collection is each face of each picture?

        Raises:
            VestibuleError: about the request, or about its only picture. NotFound, Conflict: as `enrol`.
        """
        return await settled(lambda: self._searched(pictures, params, actor))

    async def _searched(self, pictures: Images, params: SearchParams, actor: str | None) -> SearchResponse:
        found = await self._ask(lambda: self._gallery.collection(params.collection))
        sight = await self._pipeline.model(found)
        model = sight.model
        usage = await self._ask(lambda: self._gallery.usage(params.collection))
        chosen = await self._ask(lambda: self._count(found, where)) if (where := params.chosen) else None
        searched = chosen or usage
        comparisons = searched.faces if params.fusion == "best" else searched.subjects
        rule = Rule.of(model.card.matching, params.fpir, comparisons, extrapolate=params.extrapolate)

        async def one(index: int, data: bytes) -> Searched:
            seen = await self._pipeline.seen(sight, data)
            wanted = [face for face in seen if not (params.quality_gate and face.described and face.described.reasons)]
            queries = [face.vector.numpy() for face in wanted]

            async def read(places: Sequence[int], k: int) -> list[list[Match]]:
                with compared():
                    return await self._ask(
                        lambda: search(
                            self._gallery,
                            params.collection,
                            np.stack([queries[place] for place in places]),
                            k,
                            fusion=params.fusion,
                            where=where,
                            fingerprint=found.fingerprint,
                        )
                    )

            async def decide(matches: list[list[Match]]) -> list[Decision]:
                # In a thread: of a thousand faces it takes longer than the event loop may be blocked.
                return await self._pipeline.executors.run_cpu(lambda: rule.decide(matches, repeated=params.repeated))

            decisions: list[Decision] = []
            if wanted:
                decisions = await decide_by_steps(
                    rule, len(wanted), params.limit, read, decide, repeated=params.repeated
                )
            decided = {id(face): decision for face, decision in zip(wanted, decisions, strict=True)}
            describe = _Describer(rule, model.card.matching, params.limit)
            faces = await self._pipeline.predictor.map(lambda face: describe(face, decided.get(id(face))), seen)
            named = [match.subject for one in decided.values() for match in one.candidates[: params.limit]]
            await self._ask(lambda: self._gallery.note_search(params.collection, named, actor=actor))
            return Searched(index=index, faces=faces)

        data = await self._pipeline.predictor.for_each_image(pictures, one)
        return SearchResponse(
            collection=SearchedCollection(
                name=found.name,
                subjects=usage.subjects,
                faces=usage.faces,
                exact=usage.exact,
                chosen=chosen,
            ),
            threshold=1 - rule.threshold.similarity if rule.threshold else None,
            operating_point=_point(rule, model.card.matching),
            fpir=params.fpir,
            model=model.card.name,
            version=model.card.version,
            data=data,
        )

    async def verify(
        self,
        collection: str,
        key: str,
        pictures: Images,
        params: SubjectVerifyParams,
        actor: str | None,
    ) -> SubjectVerification:
        """Is the picture's most prominent face the subject?

        Raises:
            VestibuleError: about the request or its picture. NotFound, Conflict: as `search`. Unprocessable: the
            subject has no face; or nothing is known of the embedder's similarities, or not of such a rate.
        """
        return await settled(lambda: self._verified(collection, key, pictures, params, actor))

    async def _verified(
        self,
        collection: str,
        key: str,
        pictures: Images,
        params: SubjectVerifyParams,
        actor: str | None,
    ) -> SubjectVerification:
        found = await self._ask(lambda: self._gallery.collection(collection))
        subject = await self._ask(lambda: self._gallery.subject(collection, key))
        sight = await self._pipeline.model(found)
        model = sight.model
        matching = model.card.matching
        if matching is None:
            raise Unprocessable(f"{model.card.name} is not calibrated: nothing says which pictures are near enough")
        try:
            comparisons = subject.faces if params.fusion == "best" else 1
            threshold = matching.threshold(of_each(params.fmr, comparisons))
        except ValueError as error:
            raise Unprocessable(str(error)) from error
        seen = await self._meant(sight, pictures)
        query = seen.vector.numpy()
        with compared():
            match, denied = await self._ask(
                lambda: compare(
                    self._gallery, collection, key, query, fusion=params.fusion, fingerprint=found.fingerprint
                )
            )
        if match is None:
            raise Unprocessable("the subject has no face to compare with")
        await self._ask(lambda: self._gallery.note_search(collection, [match.subject], actor=actor))
        return SubjectVerification(
            verified=match.similarity >= threshold.similarity and not denied,
            denied=denied,
            probability=matching.probability(match.similarity),
            distance=max(0.0, 1 - match.similarity),
            threshold=1 - threshold.similarity,
            operating_point=OperatingPoint(
                fmr=params.fmr, calibration=matching.data, extrapolated=threshold.extrapolated, prior=matching.prior
            ),
            face=seen.described,
            face_id=match.face,
            model=model.card.name,
            version=model.card.version,
        )

    async def deny(self, collection: str, key: str, pictures: Images, actor: str | None) -> FeedbackInfo:
        """The picture's most prominent face is not the subject: it is not named for it again.

        Raises:
            VestibuleError: about the request or its picture. NotFound, Conflict: as `search`.
        """
        return await settled(lambda: self._denied(collection, key, pictures, actor))

    async def _denied(self, collection: str, key: str, pictures: Images, actor: str | None) -> FeedbackInfo:
        found = await self._ask(lambda: self._gallery.collection(collection))
        await self._ask(lambda: self._gallery.subject(collection, key))
        seen = await self._meant(await self._pipeline.model(found), pictures)
        (face,) = await self._pipeline.new_faces(key, [seen], keep_crops=keeps_crops(found))
        vector = seen.vector.numpy()[None]
        with compared():
            change = self._feedback.add.planned(collection, key, vector, [face.crop], found.fingerprint, actor)
            return await self._pipeline.commit(change, lambda made: _feedback(made[0]))

    async def denials(self, collection: str, key: str, after: str, limit: int) -> FeedbackList:
        """A page of what was said of the subject; `after` is a `next`, or empty.

        Raises:
            NotFound.
        """
        moment_s, _, number = after.partition("-")
        place = (float(moment_s or 0), min(int(number or 0), 2**62))  # SQLite has no larger integers
        found = await self._ask(lambda: self._feedback.of_subject(collection, key, place, limit))
        following = f"{found[-1].created_at!r}-{found[-1].id}" if len(found) == limit else None
        return FeedbackList(data=[_feedback(one) for one in found], next=following)

    async def take_back(self, collection: str, key: str, token: str, actor: str | None) -> ErasureReceipt:
        """Erase what was said.

        Raises:
            NotFound.
        """
        return await self._pipeline.commit(
            self._feedback.remove.planned(collection, key, token, actor=actor), described
        )

    def _count(self, found: Collection, where: Where) -> Chosen:
        with self._gallery.ledger.snapshot() as db:
            subjects, faces = metadata_filter.counts(db, found.id, where)
        return Chosen(subjects=subjects, faces=faces)

    async def _meant(self, sight: Sight, pictures: Images) -> Seen:
        """The most prominent face of the only picture.

        Raises:
            BadRequest: there are more. NoFace. See `Pipeline.seen`.
        """
        if len(pictures.items) != 1:
            raise BadRequest("send one picture")
        (data,) = pictures.items
        if isinstance(data, VestibuleError):
            raise data
        await self._pipeline.predictor.check_pixels([data])
        return most_prominent(await self._pipeline.predictor.with_deadline(self._pipeline.seen(sight, data)))


def _feedback(made: Rejection) -> FeedbackInfo:
    return FeedbackInfo(id=made.token, created_at=moment(made.created_at))


@dataclass(frozen=True)
class _Describer:
    """How a decision is told."""

    rule: Rule
    matching: Matching | None
    limit: int

    def __call__(self, seen: Seen, decision: Decision | None) -> SearchedFace:
        if decision is None:
            assert seen.described is not None  # noqa: S101  only a face can have something against it
            return SearchedFace(
                face=seen.described, status="rejected", reasons=list(seen.described.reasons), candidates=[]
            )
        reasons: list[SearchReason] = []
        if self.matching is None:
            reasons = ["NOT_CALIBRATED"]
        elif not self.rule.decides:
            reasons = ["BEYOND_CALIBRATION"]
        return SearchedFace(
            face=seen.described,
            status="match" if decision.matched else "unknown",
            reasons=reasons,
            candidates=[self._candidate(match) for match in decision.candidates[: self.limit]],
        )

    def _candidate(self, match: Match) -> Candidate:
        return Candidate(
            subject_id=match.subject.key,
            name=match.subject.name,
            face_id=match.face,
            probability=self.matching.probability(match.similarity) if self.matching else None,
            distance=max(0.0, 1 - match.similarity),
        )


def _point(rule: Rule, matching: Matching | None) -> OperatingPoint | None:
    if matching is None or rule.fmr is None or rule.threshold is None:
        return None
    return OperatingPoint(
        fmr=rule.fmr, calibration=matching.data, extrapolated=rule.threshold.extrapolated, prior=matching.prior
    )
