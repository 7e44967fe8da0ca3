"""`flawscope line cameras`: what a person sees."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from flawscope.runtime.line import cameras_command
from flawscope.runtime.line.sources.genicam.discovery import CameraFound

_CAMERAS = [
    CameraFound("Vendor-123", "Vendor", "V-5\x1b[2J", "123", "192.168.0.7", "GigEVision"),
    CameraFound("Usb-9", "Usb", "U", "9", "", "USB3Vision"),
]


def run(monkeypatch: pytest.MonkeyPatch, found: list[CameraFound], *arguments: str) -> str:
    monkeypatch.setattr(cameras_command, "find_cameras", lambda: found)
    result = CliRunner().invoke(cameras_command.cameras, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_cameras_are_listed_in_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run(monkeypatch, _CAMERAS).splitlines()
    assert lines[0].split() == ["id", "vendor", "model", "serial", "address", "protocol"]
    # Names come from strangers.
    assert "\x1b" not in lines[1]
    assert lines[1].startswith("Vendor-123  Vendor  V-5")
    assert lines[2].split() == ["Usb-9", "Usb", "U", "9", "USB3Vision"]


def test_cameras_are_printed_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.loads(run(monkeypatch, _CAMERAS, "--json"))
    assert [camera["id"] for camera in listed] == ["Vendor-123", "Usb-9"]
    assert listed[0]["address"] == "192.168.0.7"
    assert json.loads(run(monkeypatch, [], "--json")) == []


def test_no_camera_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no camera answered" in run(monkeypatch, [])
