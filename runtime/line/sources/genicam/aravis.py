"""Functions of Aravis 0.8, declared once: what they take, what they return, and how they say that they failed.

The library is named by its soname, so that no header and no `-dev` package is needed, and 0.10, whose functions take
other arguments, is never taken for it. Those of GLib come with it: it depends on them.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from flawscope.errors import FlawscopeError, MissingExtra

SONAME = "libaravis-0.8.so.0"

_POINTER = ctypes.c_void_p
_TEXT = ctypes.c_char_p
_INT = ctypes.c_int
_UINT = ctypes.c_uint
_LONG = ctypes.c_uint64
_SIZE = ctypes.POINTER(ctypes.c_size_t)
_INTS = ctypes.POINTER(ctypes.c_int)

BUFFER_SUCCESS = 0
BUFFER_STATUS: dict[int, str] = {
    -1: "UNKNOWN",
    0: "SUCCESS",
    1: "CLEARED",
    2: "TIMEOUT",
    3: "MISSING_PACKETS",
    4: "WRONG_PACKET_ID",
    5: "SIZE_MISMATCH",
    6: "FILLING",
    7: "ABORTED",
    8: "PAYLOAD_NOT_SUPPORTED",
}
"""ArvBufferStatus."""

PAYLOAD_IMAGES = (0x0001, 0x0005)
"""ArvBufferPayloadType of buffers that begin with one image: IMAGE, and EXTENDED_CHUNK_DATA, where chunks follow it."""

PACKET_SIZE_NEVER_ADJUSTED = 0
"""ArvGvPacketSizeAdjustment: the size that was asked for is used, whether packets of it arrive or not."""

STREAM_BY_UDP_ALONE = 1
"""ArvGvStreamOption: no packet socket."""

_TYPE_INT = 6 << 2
"""GType of gint."""

TYPE_UINT64 = 11 << 2
"""GType of guint64."""

# Name -> result, arguments. Functions that may fail take a GError** last, which `call` adds.
_PLAIN: dict[str, tuple[Any, list[Any]]] = {
    "g_object_ref": (_POINTER, [_POINTER]),
    "g_object_unref": (None, [_POINTER]),
    "g_error_free": (None, [_POINTER]),
    "g_value_init": (_POINTER, [_POINTER, ctypes.c_size_t]),
    "g_value_set_int": (None, [_POINTER, _INT]),
    "g_object_set_property": (None, [_POINTER, _TEXT, _POINTER]),
    "arv_update_device_list": (None, []),
    "arv_get_n_devices": (_UINT, []),
    "arv_get_device_id": (_TEXT, [_UINT]),
    "arv_get_device_vendor": (_TEXT, [_UINT]),
    "arv_get_device_model": (_TEXT, [_UINT]),
    "arv_get_device_serial_nbr": (_TEXT, [_UINT]),
    "arv_get_device_address": (_TEXT, [_UINT]),
    "arv_get_device_protocol": (_TEXT, [_UINT]),
    "arv_camera_get_device": (_POINTER, [_POINTER]),
    "arv_camera_is_gv_device": (_INT, [_POINTER]),
    "arv_camera_gv_set_packet_size_adjustment": (None, [_POINTER, _INT]),
    "arv_gv_device_is_controller": (_INT, [_POINTER]),
    "arv_gv_device_set_stream_options": (None, [_POINTER, _INT]),
    "arv_device_get_feature": (_POINTER, [_POINTER, _TEXT]),
    "arv_buffer_new_allocate": (_POINTER, [ctypes.c_size_t]),
    "arv_buffer_get_status": (_INT, [_POINTER]),
    "arv_buffer_get_payload_type": (_INT, [_POINTER]),
    "arv_buffer_get_frame_id": (_LONG, [_POINTER]),
    "arv_buffer_get_image_pixel_format": (ctypes.c_uint32, [_POINTER]),
    "arv_buffer_get_image_width": (_INT, [_POINTER]),
    "arv_buffer_get_image_height": (_INT, [_POINTER]),
    "arv_buffer_get_image_padding": (None, [_POINTER, _INTS, _INTS]),
    "arv_buffer_get_image_data": (_POINTER, [_POINTER, _SIZE]),
    "arv_stream_push_buffer": (None, [_POINTER, _POINTER]),
    "arv_stream_timeout_pop_buffer": (_POINTER, [_POINTER, _LONG]),
    "arv_stream_get_n_infos": (_UINT, [_POINTER]),
    "arv_stream_get_info_name": (_TEXT, [_POINTER, _UINT]),
    "arv_stream_get_info_type": (ctypes.c_size_t, [_POINTER, _UINT]),
    "arv_stream_get_info_uint64": (_LONG, [_POINTER, _UINT]),
}
_FAILING: dict[str, tuple[Any, list[Any]]] = {
    "arv_camera_new": (_POINTER, [_TEXT]),
    "arv_camera_create_stream": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "arv_camera_start_acquisition": (None, [_POINTER]),
    "arv_camera_stop_acquisition": (None, [_POINTER]),
    "arv_camera_get_payload": (_UINT, [_POINTER]),
    "arv_camera_get_pixel_format": (ctypes.c_uint32, [_POINTER]),
    "arv_camera_clear_triggers": (None, [_POINTER]),
    "arv_camera_software_trigger": (None, [_POINTER]),
    "arv_camera_is_feature_available": (_INT, [_POINTER, _TEXT]),
    "arv_camera_is_enumeration_entry_available": (_INT, [_POINTER, _TEXT, _TEXT]),
    "arv_camera_gv_auto_packet_size": (_UINT, [_POINTER]),
    "arv_camera_gv_set_packet_size": (None, [_POINTER, _INT]),
    "arv_camera_gv_get_packet_size": (_UINT, [_POINTER]),
    "arv_device_read_register": (_INT, [_POINTER, _LONG, ctypes.POINTER(ctypes.c_uint32)]),
    "arv_gc_feature_node_set_value_from_string": (None, [_POINTER, _TEXT]),
    "arv_gc_feature_node_get_value_as_string": (_TEXT, [_POINTER]),
}


class AravisMissing(MissingExtra):
    """Aravis is not installed, or is too old. It is a package of the system, not of Python."""

    def __init__(self, found: str) -> None:
        FlawscopeError.__init__(
            self,
            f"GenICam cameras: expected the library {SONAME} (Aravis 0.8.26 or newer), got {found}. "
            "Install it with: apt install libaravis-0.8-0",
        )


class AravisError(Exception):
    """What Aravis said when a call failed: the camera does not answer, refuses a value, or is not there."""


class _GError(ctypes.Structure):
    _fields_ = [("domain", ctypes.c_uint32), ("code", ctypes.c_int), ("message", ctypes.c_char_p)]


class _GValue(ctypes.Structure):
    _fields_ = [("type", ctypes.c_size_t), ("data", ctypes.c_uint64 * 2)]


@functools.cache
def library() -> ctypes.CDLL:
    """Return the library with all its functions declared.

    Raises:
        AravisMissing: If it is not there, or lacks one of them.
    """
    try:
        loaded = ctypes.CDLL(SONAME)
    except OSError as err:
        raise AravisMissing("none") from err
    error = ctypes.POINTER(ctypes.POINTER(_GError))
    for functions, more in ((_PLAIN, []), (_FAILING, [error])):
        for name, (result, arguments) in functions.items():
            try:
                function = getattr(loaded, name)
            except AttributeError as err:
                raise AravisMissing(f"one without {name}") from err
            function.restype, function.argtypes = result, [*arguments, *more]
    return loaded


def call(name: str, *arguments: Any) -> Any:
    """Call a function that may fail.

    Raises:
        AravisError: With the library's words, if it did.
    """
    error = ctypes.POINTER(_GError)()
    result = getattr(library(), name)(*arguments, ctypes.byref(error))
    if error:
        message = (error.contents.message or b"no reason given").decode(errors="replace")
        library().g_error_free(error)
        # An object that came with an error would be nobody's.
        raise AravisError(message)
    return result


def set_int(handle: int, name: str, value: int) -> None:
    """Set a property of an object that is an int."""
    # By g_object_set it would be one line; how ctypes passes variable arguments differs between processors.
    holder = _GValue()
    library().g_value_init(ctypes.byref(holder), _TYPE_INT)
    library().g_value_set_int(ctypes.byref(holder), value)
    library().g_object_set_property(handle, name.encode(), ctypes.byref(holder))


def text(value: bytes | None) -> str:
    """Return a text of the library, which has none for what a camera does not say."""
    return "" if value is None else value.decode(errors="replace")
