"""The interfaces of a storage engine that app/ uses; they name no engine and no files.

`index.factory.open_storage` opens a `Storage`, whose attributes are the other interfaces.
"""

from index.protocol.alerts import AlertOutbox, AlertRules, Alerts
from index.protocol.calibrations import Calibrations
from index.protocol.changes import IDEMPOTENCY_S, ChangingMethod, PlannedChange, changes
from index.protocol.curation import UNDO_S, Curation
from index.protocol.gallery import Feedback, Gallery, Searches
from index.protocol.jobs import LEASE_S, JobQueue, JobWorker
from index.protocol.reembedding import FIRST, Reembeddings, ReembeddingWorker
from index.protocol.service_state import AuditLog, KeyStore, Quota, Quotas, Reloads, ServiceState
from index.protocol.sightings import Sightings
from index.protocol.storage import Maintenance, Storage
from index.protocol.transfer import GallerySnapshot, Transfer

__all__ = [
    "FIRST",
    "IDEMPOTENCY_S",
    "LEASE_S",
    "UNDO_S",
    "AlertOutbox",
    "AlertRules",
    "Alerts",
    "AuditLog",
    "Calibrations",
    "ChangingMethod",
    "Curation",
    "Feedback",
    "Gallery",
    "GallerySnapshot",
    "JobQueue",
    "JobWorker",
    "KeyStore",
    "Maintenance",
    "PlannedChange",
    "Quota",
    "Quotas",
    "ReembeddingWorker",
    "Reembeddings",
    "Reloads",
    "Searches",
    "ServiceState",
    "Sightings",
    "Storage",
    "Transfer",
    "changes",
]
