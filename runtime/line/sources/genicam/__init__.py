"""GigE Vision and USB3 Vision cameras through Aravis, bound by ctypes: a system library, no package of Python."""

from flawscope.runtime.line.sources.genicam.discovery import CameraFound, find_cameras
from flawscope.runtime.line.sources.genicam.grabber import GenicamGrabber

__all__ = ["CameraFound", "GenicamGrabber", "find_cameras"]
