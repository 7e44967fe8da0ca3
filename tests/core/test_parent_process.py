"""A process that asks for it is killed with its parent, and is told where that was gone before."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.serial  # they kill processes

CHILD = """
import os, sys, time
parent = os.getppid() if sys.argv[1] == "now" else int(sys.argv[1])
from flawscope.parent_process import end_with_parent
print(end_with_parent(parent), flush=True)
time.sleep(600 if parent == os.getppid() else 0)
"""
PARENT = """
import os, subprocess, sys
with subprocess.Popen([sys.executable, "-c", sys.argv[1], "now"], stdout=subprocess.PIPE) as child:
    print(child.stdout.readline().decode(), end="", flush=True)
    os.read(0, 1)
    os._exit(0)  # however it ends
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of a parent's death")
def test_a_child_ends_with_its_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"True\n"
        # Until the child, which has them too, has closed its ends of the pipes.
        assert parent.communicate(b"x", timeout=60) == (b"", b"")


def test_a_parent_that_was_gone_before_is_told() -> None:
    said = subprocess.run([sys.executable, "-c", CHILD, "999999999"], capture_output=True, check=True, timeout=60)
    assert said.stdout == b"False\n"
