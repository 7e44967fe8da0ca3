"""Releases that a line refuses: what is not signed, not whole or does not fit leaves the old bundle and says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="needs cryptography (extra `sign`)")

import cv2
import numpy as np
from following_lines import following, in_force, looks_again, registered, rollout_of, until
from line_stand_ins import wait_until
from oci_registry import OciRegistry, endless
from released_bundles import Maker
from swapped_lines import SWAP_S, events_of, running, verdict_of
from tiny_bundle import write_tiny_bundle

from flawscope.bundle import sign_bundle
from flawscope.bundle.ed25519 import read_private_key, write_keys

pytestmark = pytest.mark.usefixtures("quick_looks")


class TestRefused:
    """What is not signed, not whole or does not fit leaves the old bundle and says why; the next look asks no more."""

    @pytest.mark.long
    def test_hostile_releases_leave_the_old_bundle_and_a_good_one_comes_after_them(
        self, tmp_path: Path, maker: Maker, registry: OciRegistry
    ) -> None:
        maker.bundle("new", 100.0)
        maker.bundle("other", 110.0)
        maker.publish("other", registry.place, "other")
        read = following(maker, registered(registry), swap={"upload_mb": 1})
        with running(tmp_path, read=read) as line:
            before = in_force(line)
            for make, words, pulls in HOSTILE:
                registry.tags.pop("stable", None)
                wait_until(lambda: "got none" in rollout_of(line).problem)
                make(maker, registry)
                release = registry.tags["stable"]
                wait_until(lambda release=release: rollout_of(line).release == release)
                status = until(line, "refused", "failed")
                assert words in status.detail, make
                blobs = registry.asked("blobs")
                looks_again(line, registry)
                assert registry.asked("blobs") == blobs, "it is not asked for again"
                layer = json.loads(registry.blobs[release])["layers"][0]["digest"]
                assert sum(one.startswith("GET") and one.endswith(layer) for one in blobs) >= pulls
                assert pulls or not any(one.startswith("GET") and one.endswith(layer) for one in blobs)
                assert in_force(line) == before
                assert not list((tmp_path / "state" / "bundles").glob(".*.pulled"))
            assert verdict_of(line, 140).verdict == "accept"
            good = maker.bundle("good", 120.0)
            maker.publish("good", registry.place)
            wait_until(lambda: in_force(line) == good, SWAP_S)
            until(line, "done")
        told = events_of(tmp_path, "rollout_refused", "rollout_failed")
        assert len(told) == len(HOSTILE)
        assert all(words in event["reason"] for (_, words, _), event in zip(HOSTILE, told, strict=True))

    def test_bytes_that_are_others_are_not_pulled_again_by_the_next_start(
        self, tmp_path: Path, maker: Maker, registry: OciRegistry
    ) -> None:
        other_bytes(maker, registry)
        read = following(maker, registered(registry))
        for _ in range(2):
            with running(tmp_path, read=read) as line:
                until(line, "refused")
                looks_again(line, registry)
        layer = json.loads(registry.blobs[registry.tags["stable"]])["layers"][0]["digest"]
        assert registry.asked("blobs").count(f"GET /v2/factory/top/blobs/{layer}") == 1

    def test_one_that_fails_the_challenge_of_the_site(
        self, tmp_path: Path, maker: Maker, registry: OciRegistry
    ) -> None:
        folder = tmp_path / "state" / "challenge" / "top" / "must_accept"
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "good.png"), np.full((16, 16, 3), 140, np.uint8))
        maker.bundle("new", 100.0)
        release = maker.publish("new", registry.place)
        read = following(maker, registered(registry))
        with running(tmp_path, read=read) as line:
            before = in_force(line)
            assert "challenge: 1 of 1 parts" in until(line, "failed").detail
            # The same bundle under another manifest.
            registry.retag(release, lambda said: said | {"annotations": {"again": "1"}})
            assert "it failed before: challenge" in until(line, "refused").detail
            assert in_force(line) == before
        assert len(events_of(tmp_path, "swap_begun")) == 1


def foreign_key(maker: Maker, registry: OciRegistry) -> None:
    maker.bundle("foreign", 101.0)
    write_keys(maker.folder / "stranger")
    key = read_private_key(maker.folder / "stranger", lambda: None)
    sign_bundle(maker.folder / "foreign.flaw", key, overwrite=True)
    maker.publish("foreign", registry.place)


def without_thresholds(maker: Maker, registry: OciRegistry) -> None:
    write_tiny_bundle(maker.folder / "bare.flaw")
    maker.sign("bare")
    maker.publish("bare", registry.place)


# The line looks many times a second: a release has the tag that it follows only when it is as bad as it shall be.


def too_large(maker: Maker, registry: OciRegistry) -> None:
    release = maker.publish("new", registry.place, "draft")
    registry.retag(release, lambda said: said | {"layers": [said["layers"][0] | {"size": 2 << 20}]})


def another_bundle(maker: Maker, registry: OciRegistry) -> None:
    """Have the layer of another signed bundle: whoever writes to the registry can make such a manifest."""
    release = maker.publish("new", registry.place, "draft")
    layers = json.loads(registry.blobs[registry.tags["other"]])["layers"]
    registry.retag(release, lambda said: said | {"layers": layers})


def no_bundle_at_all(maker: Maker, registry: OciRegistry) -> None:
    release = maker.publish("new", registry.place, "draft")
    registry.retag(release, lambda said: said | {"artifactType": "application/vnd.oci.helm"})


def other_bytes(maker: Maker, registry: OciRegistry) -> None:
    maker.bundle("torn", 102.0)
    release = maker.publish("torn", registry.place, "draft")
    layer = json.loads(registry.blobs[release])["layers"][0]["digest"]
    data = bytearray(registry.blobs[layer])
    data[len(data) // 2] ^= 1
    registry.blobs[layer] = bytes(data)
    registry.tags["stable"] = release


def body_without_end(maker: Maker, registry: OciRegistry) -> None:
    maker.bundle("long", 103.0)
    release = maker.publish("long", registry.place, "draft")
    layer = json.loads(registry.blobs[release])["layers"][0]
    registry.bad.append((layer["digest"], endless))
    registry.tags["stable"] = release


HOSTILE: tuple[tuple[Callable[[Maker, OciRegistry], None], str, int], ...] = (
    (foreign_key, "none of them", 0),
    (without_thresholds, "expected a bundle with thresholds", 0),
    (too_large, "at most 1 MiB", 0),
    (no_bundle_at_all, "expected a bundle (application/vnd.flawscope", 0),
    (another_bundle, "expected the bundle", 1),
    (other_bytes, "was changed on the way", 1),
    (body_without_end, "it does not end", 1),
)
"""What publishes a release that a line refuses, why, and how often its layer is asked for."""
