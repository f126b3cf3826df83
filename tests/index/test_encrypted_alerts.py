"""Alerts of encrypted collections: nothing of a rule is stored as plain text, and a missing key hides them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from index.alert_rules import AlertSettings, AlertTarget
from index.embedded.alerts.alerts import AlertOutbox, AlertRules, Alerts, store_alerts
from index.embedded.gallery import EmbeddedGallery
from index.embedded.sightings.sightings import Sightings
from index.errors import LockedError
from index.operator_key import OperatorKey
from index.sightings import NewSighting
from tests.index.people import folder_bytes

KEY = OperatorKey(b"k" * 32)
SETTINGS = AlertSettings(
    "The Lovelaces",
    "match",
    where={"family": ["Lovelace"]},
    targets=(AlertTarget("hook", "webhook", "https://a.example/hook", "whsec_secret"),),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gallery with an alert in an encrypted collection, and one in a collection that is not."""
    with closing(EmbeddedGallery(tmp_path, key=KEY)) as gallery:
        rules = AlertRules(gallery)
        sightings = Sightings(gallery, [store_alerts])
        for name, encrypted in (("secret", True), ("open", False)):
            gallery.create(name, "face-embedder", "f1", 4, encrypted=encrypted)
            gallery.put_subject(name, "ada", metadata={"family": "Lovelace"} if encrypted else {})
            where = SETTINGS.where if encrypted else {}
            targets = tuple(replace(target, token=f"{name}-hook") for target in SETTINGS.targets)
            rules.create(name, replace(SETTINGS, where=where, targets=targets, name=name))
            now = gallery.clock()
            sightings.add(name, NewSighting("door", now, now, 1, subject="ada"))
    return tmp_path


def test_rules_of_an_encrypted_collection_are_not_stored_as_plain_text(folder: Path) -> None:
    stored = folder_bytes(folder)
    assert b"Lovelace" not in stored
    assert stored.count(b"whsec_secret") > 0  # of the other collection
    with closing(EmbeddedGallery(folder, key=KEY)) as gallery:
        rules = AlertRules(gallery)
        AlertRules(gallery).remove(rules.page()[1].token)
        gallery.ledger.scrub()
    assert b"whsec_secret" not in folder_bytes(folder)


def test_alerts_of_a_locked_collection_are_left_out(folder: Path) -> None:
    with closing(EmbeddedGallery(folder, key=KEY)) as gallery:
        (secret, _) = AlertRules(gallery).page()
        (alert, _) = Alerts(gallery).page()
        assert sorted(AlertOutbox(gallery).due()) == ["open-hook", "secret-hook"]
    with closing(EmbeddedGallery(folder)) as gallery:
        rules, alerts, outbox = AlertRules(gallery), Alerts(gallery), AlertOutbox(gallery)
        assert [rule.collection for rule in rules.page()] == ["open"]
        assert [alert.rule.collection for alert in alerts.page()] == ["open"]
        assert outbox.due() == ["open-hook"]
        assert outbox.first("secret-hook") is None
        with pytest.raises(LockedError):
            rules.rule(secret.token)
        with pytest.raises(LockedError):
            rules.replace(secret.token, SETTINGS)
        assert alert.token not in [row.token for row in alerts.page()]
        rules.remove(secret.token)  # needs no key
    with closing(EmbeddedGallery(folder, key=KEY)) as gallery:
        assert [rule.collection for rule in AlertRules(gallery).page()] == ["open"]
