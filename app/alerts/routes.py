"""Routes of alerts: rules, alerts and their deliveries, and the event stream."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from app import errors
from app.alerts.schemas import (
    AlertInfo,
    AlertPage,
    NewCollectionRule,
    NewRule,
    RuleInfo,
    RulePage,
    StoredRule,
)
from app.alerts.service import AlertService
from app.auth.scopes import ENROL, REVIEW
from app.gallery.schemas import Key
from app.middleware.routing import costly
from index.alert_rules import AlertState

router = APIRouter(tags=["alerts"])

COMMON = (
    errors.HostNotAllowed,
    errors.OriginNotAllowed,
    errors.NotFound,
    errors.InvalidParameters,
    errors.Locked,
    errors.StorageUnavailable,
)
READING = errors.describe(*COMMON)
CHANGING = errors.describe(*COMMON, errors.DiskFull)
STORING = errors.describe(
    *COMMON, errors.BadRequest, errors.BodyTooLarge, errors.UnsupportedMediaType, errors.Unprocessable, errors.DiskFull
)
RESENDING = errors.describe(*COMMON, errors.Conflict, errors.DiskFull)
STREAMING = errors.describe(*COMMON, errors.Overloaded)
STREAMING[200] = {"content": {"text/event-stream": {}}, "description": "Events of the type `alert`"}

MAX_ROW_ID = 2**62
Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[
    int, Query(ge=0, le=MAX_ROW_ID, description="Where the page begins: the `next` of the previous page.")
]
LastEventId = Annotated[
    str | None,
    Header(pattern=r"^[0-9]{1,18}$", description="The `id` of the last event that the client has: continue behind it."),
]


def alert_service(request: Request) -> AlertService:
    """Return the service of alerts."""
    return cast("AlertService", request.app.state.alerts)


@router.post("/alerts/rules", status_code=201, dependencies=ENROL, responses=STORING)
async def create_alert_rule(request: Request, rule: NewCollectionRule) -> StoredRule:
    """Create a rule: which sightings of a collection cause an alert, and where it is sent."""
    return await alert_service(request).create_rule(rule.collection, rule, request.state.caller)


@router.get("/alerts/rules", dependencies=ENROL, responses=READING)
async def alert_rules(request: Request, after: After = 0, limit: Limit = 100) -> RulePage:
    """Return a page of the rules of all collections, without the secrets of their targets."""
    return await alert_service(request).list_rules(after, limit)


@router.get("/alerts/rules/{rule}", dependencies=ENROL, responses=READING)
async def alert_rule(request: Request, rule: Key) -> RuleInfo:
    """Return a rule, without the secrets of its targets."""
    return await alert_service(request).rule(rule)


@router.put("/alerts/rules/{rule}", dependencies=ENROL, responses=STORING)
async def replace_alert_rule(request: Request, rule: Key, settings: NewRule) -> StoredRule:
    """Replace a rule of the same collection. A target with the same URL keeps its pending alerts and its secret."""
    return await alert_service(request).replace_rule(rule, settings, request.state.caller)


@router.delete("/alerts/rules/{rule}", dependencies=ENROL, responses=CHANGING)
async def delete_alert_rule(request: Request, rule: Key) -> RuleInfo:
    """Delete a rule and all its alerts."""
    return await alert_service(request).remove_rule(rule, request.state.caller)


@router.get("/alerts", dependencies=REVIEW, responses=READING)
async def alerts(
    request: Request,
    state: AlertState | None = None,
    after: After = 0,
    limit: Limit = 100,
    newest_first: bool = False,
) -> AlertPage:
    """Return a page of the alerts, oldest first unless `newest_first`. An alert is erased with its sighting."""
    return await alert_service(request).list_alerts(state, after, limit, newest_first=newest_first)


@router.get("/alerts/stream", dependencies=REVIEW, response_class=StreamingResponse, responses=STREAMING)
@costly
async def alert_stream(
    request: Request, collection: Key | None = None, last_event_id: LastEventId = None
) -> StreamingResponse:
    """Return new alerts as server-sent events, until the client disconnects or the stream ends after some minutes."""
    after = None if last_event_id is None else int(last_event_id)
    events = await alert_service(request).streams.open(after, collection)
    return StreamingResponse(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


@router.get("/alerts/{alert}", dependencies=REVIEW, responses=READING)
async def alert(request: Request, alert: Key) -> AlertInfo:
    """Return an alert and the state of its deliveries."""
    return await alert_service(request).alert(alert)


@router.post("/alerts/{alert}/resend", dependencies=ENROL, responses=RESENDING)
async def resend_alert(request: Request, alert: Key) -> AlertInfo:
    """Send the dead deliveries of an alert again, with the same id and before later alerts."""
    return await alert_service(request).resend(alert, request.state.caller)
