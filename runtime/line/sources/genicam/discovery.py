"""Looking for cameras: for the command that lists them alone, as it disturbs some cameras that are working."""

from __future__ import annotations

import msgspec

from flawscope.runtime.line.sources.genicam.aravis import library, text


class CameraFound(msgspec.Struct, frozen=True):
    """A camera that answered.

    Attributes:
        id: Its name, for `camera` of a source.
        vendor: Who made it.
        model: Its model.
        serial: Its serial number.
        address: Its network address; empty for USB. It can stand for the name.
        protocol: Such as `GigEVision` or `USB3Vision`.
    """

    id: str
    vendor: str
    model: str
    serial: str
    address: str
    protocol: str


def find_cameras() -> list[CameraFound]:
    """Ask all networks and USB ports for cameras, and return those that answer within about a second.

    Raises:
        AravisMissing: If Aravis is not installed.
    """
    aravis = library()
    aravis.arv_update_device_list()
    return [
        CameraFound(
            id=text(aravis.arv_get_device_id(i)),
            vendor=text(aravis.arv_get_device_vendor(i)),
            model=text(aravis.arv_get_device_model(i)),
            serial=text(aravis.arv_get_device_serial_nbr(i)),
            address=text(aravis.arv_get_device_address(i)),
            protocol=text(aravis.arv_get_device_protocol(i)),
        )
        for i in range(aravis.arv_get_n_devices())
    ]
