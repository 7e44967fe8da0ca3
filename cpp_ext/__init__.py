"""Distance kernels behind one interface: patch distance, Mahalanobis distance and greedy k-centre selection.

Compiled where the installation has them (`HAVE_NATIVE`), otherwise the NumPy reference with the same results up to
rounding.
"""

from flawscope.cpp_ext.bank import Bank, nearest
from flawscope.cpp_ext.gaussians import Gaussians, mahalanobis
from flawscope.cpp_ext.kcenter import kcenter_greedy
from flawscope.cpp_ext.maps import separable_maps
from flawscope.cpp_ext.native import HAVE_CUDA, HAVE_NATIVE, implementation, simd_level
from flawscope.cpp_ext.neighbours import neighbour_table
from flawscope.cpp_ext.window import WindowBank

__all__ = [
    "HAVE_CUDA",
    "HAVE_NATIVE",
    "Bank",
    "Gaussians",
    "WindowBank",
    "implementation",
    "kcenter_greedy",
    "mahalanobis",
    "nearest",
    "neighbour_table",
    "separable_maps",
    "simd_level",
]
