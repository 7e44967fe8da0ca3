"""A deliberate write to no address, in a process of its own; started by the stage `device`. Written, not run.

    python -m gpu_stages.bad_address

Exit status 0 where the session says that the device is lost, and does so again at the next call, without a crash.
"""

from __future__ import annotations

import importlib
import os
import sys

import numpy as np

KEPT: list[object] = []
"""What PyCUDA made: its destructors fail on a dead context, and one that fails ends the process."""

DAMAGE = "__global__ void damage(float* nowhere) { *nowhere = 1.0f; }"


def main() -> int:
    """Break the device; return 0 where the errors are those that are promised."""
    from flawscope.errors import DeviceLost
    from flawscope.runtime.backends.device import Device

    device = Device()
    said = []
    for _ in range(2):
        try:
            with device.current():
                # A kernel of its own: the driver refuses copies to such a place, and the project's kernels do as well.
                module = importlib.import_module("pycuda.compiler").SourceModule(DAMAGE)
                KEPT.append(module)
                module.get_function("damage")(np.uintp(16), block=(1, 1, 1), grid=(1, 1), stream=device.stream)
                device.wait()
            said.append("nothing")
        except DeviceLost as err:
            said.append(f"lost: {err}")
        except Exception as err:  # what it is instead is what this process is there to find out
            said.append(f"{type(err).__name__}: {err}")
    device.close()
    print("\n".join(said), flush=True)
    return 0 if all(text.startswith("lost: ") for text in said) else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
