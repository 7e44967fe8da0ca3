"""Who shares what with whom: memory with other libraries, the interpreter with other threads, threads with a fork."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kernel_cases import assert_same, integers, random

from flawscope import cpp_ext
from flawscope.cpp_ext import native
from flawscope.errors import ArgumentError

pytestmark = pytest.mark.skipif(not native.HAVE_NATIVE, reason=f"no native kernels: {native.MISSING_BECAUSE}")


def results(convert, threads=0):
    """Every kernel once, on arrays that `convert` makes of NumPy's."""
    rows, queries = convert(integers(300, 9, high=9)), convert(integers(40, 9, seed=1, high=9))
    mean, whitening = convert(integers(5, 9)), convert(integers(5, 9, 9, seed=1))
    features = convert(integers(3, 5, 9, seed=2))
    return (
        *cpp_ext.nearest(queries, rows, 3, threads=threads),
        *(part for s in ("float32", "float16", "int8") for part in cpp_ext.Bank(rows, s).nearest(queries, 3, rerank=9)),
        cpp_ext.kcenter_greedy(rows, 20, 0, threads=threads),
        cpp_ext.mahalanobis(features, mean, whitening, threads=threads),
    )


# --- PyTorch and DLPack


def test_torch_tensors_give_the_same_results():
    torch = pytest.importorskip("torch")
    assert_same(results(torch.from_numpy), results(np.asarray))


def test_torch_halves_are_queries_too():
    torch = pytest.importorskip("torch")
    queries, rows = random(20, 9).astype(np.float16), random(40, 9, seed=1)
    assert_same(cpp_ext.nearest(torch.from_numpy(queries), rows, 3), cpp_ext.nearest(queries, rows, 3))


def test_a_tensor_is_read_where_it_lies():
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(integers(50, 4, high=9))
    bank = cpp_ext.Bank(rows)
    rows[7] += 100  # against the rules, and so it shows: the distance of the winner is computed from the tensor itself
    distances, indices = bank.nearest((rows[7:8] - 100).contiguous(), 1)
    assert indices.tolist() == [[7]]
    assert distances.tolist() == [[40_000]]


def test_a_tensor_that_asks_for_gradients_is_read_too():
    torch = pytest.importorskip("torch")
    rows = torch.ones(4, 3, requires_grad=True)
    assert cpp_ext.nearest(np.ones((1, 3), np.float32), rows, 1)[0].tolist() == [[0]]


@pytest.mark.parametrize(
    "make",
    [
        lambda tensor: tensor.T.contiguous().T,
        lambda tensor: tensor.repeat_interleave(2, 1)[:, ::2],
        lambda tensor: tensor.repeat_interleave(2, 0)[::2],
    ],
    ids=["turned", "channels", "rows"],
)
def test_tensors_with_strides_are_read_as_those_of_numpy_are(make):
    torch = pytest.importorskip("torch")
    plain = integers(6, 4)
    tensor = make(torch.from_numpy(plain))
    assert not tensor.is_contiguous()
    for got, wanted in (
        (cpp_ext.nearest(tensor, plain, 2), cpp_ext.nearest(plain, plain, 2)),
        (cpp_ext.nearest(plain, tensor, 2), cpp_ext.nearest(plain, plain, 2)),
        (cpp_ext.Bank(tensor).nearest(plain, 2), cpp_ext.nearest(plain, plain, 2)),
        ((cpp_ext.kcenter_greedy(tensor, 4, 0),), (cpp_ext.kcenter_greedy(plain, 4, 0),)),
    ):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda torch: torch.ones(6, 4, dtype=torch.float64), "float64"),
        (lambda torch: torch.ones(6, 4, dtype=torch.bfloat16), "bfloat16"),
        (lambda torch: torch.ones(6, 4, dtype=torch.bool), "bool"),
        (lambda torch: torch.ones(6, 4, dtype=torch.complex64), "complex64"),
        (lambda torch: torch.ones(6, 4, device="meta"), "(meta|Tensor)"),
        (lambda torch: torch.ones(6, 4).to_sparse(), "([sS]parse|Tensor)"),
    ],
    ids=["float64", "bfloat16", "bool", "complex64", "meta", "sparse"],
)
def test_other_tensors_are_refused_in_words(make, got):
    torch = pytest.importorskip("torch")
    tensor, plain = make(torch), integers(6, 4)
    for name, call in (
        ("queries", lambda: cpp_ext.nearest(tensor, plain, 1)),
        ("bank", lambda: cpp_ext.nearest(plain, tensor, 1)),
        ("bank", lambda: cpp_ext.Bank(tensor)),
        ("features", lambda: cpp_ext.kcenter_greedy(tensor, 1, 0)),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}: expected [^\n]*, got [^\n]*{got}[^\n]*$"):
            call()


# What speaks DLPack need not have `ndim` or a length. In a process of its own: a kernel that takes its results to be
# shorter than they are writes beyond them.
DLPACK_ONLY = """
import numpy as np
from flawscope import cpp_ext

class Bare:
    def __init__(self, array):
        self.array = array
    def __dlpack__(self, **options):
        return self.array.__dlpack__()
    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

rows = np.random.default_rng(0).integers(-9, 10, (300, 8)).astype(np.float32)
queries, mean, whitening = rows[:40].copy(), rows[:5].copy(), rows[:40].reshape(5, 8, 8).copy()
features = rows[:20].reshape(4, 5, 8).copy()
for got, wanted in (
    {cases}
):
    np.testing.assert_array_equal(got, wanted)
print("same")
"""
BARE_CASES = {
    "queries": "(cpp_ext.nearest(Bare(queries), rows, 3), cpp_ext.nearest(queries, rows, 3)),",
    "queries of a bank": "(cpp_ext.Bank(rows).nearest(Bare(queries), 3), cpp_ext.nearest(queries, rows, 3)),",
    "bank": "(cpp_ext.nearest(queries, Bare(rows), 3), cpp_ext.nearest(queries, rows, 3)),",
    "bank to pack": "(cpp_ext.Bank(Bare(rows)).nearest(queries, 3), cpp_ext.nearest(queries, rows, 3)),",
    "features of the selection": "(cpp_ext.kcenter_greedy(Bare(rows), 20, 0), cpp_ext.kcenter_greedy(rows, 20, 0)),",
    "Gaussians": "(cpp_ext.mahalanobis(Bare(features), Bare(mean), Bare(whitening)),"
    " cpp_ext.mahalanobis(features, mean, whitening)),",
}


@pytest.mark.parametrize("name", list(BARE_CASES))
def test_an_object_that_has_nothing_but_dlpack_gives_the_same_results(name):
    code = DLPACK_ONLY.format(cases=BARE_CASES[name])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "same"), done.stderr[-2000:]


# --- other threads


def long_nearest():
    return cpp_ext.nearest(random(2000, 64), random(20_000, 64, seed=1), 1, threads=1)


def long_kcenter():
    return cpp_ext.kcenter_greedy(random(20_000, 16), 1500, 0, threads=1)


def long_packing():
    return cpp_ext.Bank(random(40_000, 64), "int8", threads=1)


def long_mahalanobis():
    gaussians = cpp_ext.Gaussians(random(200, 200), random(200, 200, 200, seed=1), threads=1)
    return gaussians.mahalanobis(random(64, 200, 200, seed=2), threads=1)


@pytest.mark.parametrize("kernel", ["nearest_rows", "Bank", "kcenter_greedy", "mahalanobis"])
def test_other_threads_go_on_while_a_kernel_runs(monkeypatch, kernel):
    # Counted between entry and exit of the compiled function itself, so nothing else can give way in between.
    ticks, finished, seen = [0], threading.Event(), []

    class Watched:
        """The compiled module or object, with a look at the counter before and after each call."""

        def __init__(self, wrapped):
            self._wrapped = wrapped

        def __getattr__(self, name):
            found = getattr(self._wrapped, name)
            return self._watch(found) if callable(found) else found

        @staticmethod
        def _watch(function):
            def call(*args):
                before = ticks[0]
                result = function(*args)
                seen.append(ticks[0] - before)
                return Watched(result) if type(result).__module__.endswith("_native") else result

            return call

    monkeypatch.setattr(native, "MODULE", Watched(native.MODULE))
    work = {
        "nearest_rows": long_nearest,
        "Bank": long_packing,
        "kcenter_greedy": long_kcenter,
        "mahalanobis": long_mahalanobis,
    }[kernel]

    def run():
        try:
            work()
        finally:
            finished.set()

    for _ in range(5):  # on a busy machine this thread may have no core while the kernel runs
        finished.clear()
        worker = threading.Thread(target=run)
        worker.start()
        while not finished.is_set():
            ticks[0] += 1
        worker.join()
        assert seen
        # A kernel that held the lock would let nobody count but in the instant of its call.
        if seen[-1] >= 1000:
            return
    raise AssertionError(f"nobody else had a turn: {seen[-5:]}")


def test_calls_from_several_threads_at_once_give_the_same_results():
    wanted = results(np.asarray, threads=1)
    with ThreadPoolExecutor(6) as pool:
        for got in pool.map(lambda i: results(np.asarray, threads=i % 4), range(60)):
            assert_same(got, wanted)


def test_one_bank_serves_several_threads_at_once():
    rows, queries = integers(3000, 17, high=9), integers(100, 17, seed=1, high=9)
    bank = cpp_ext.Bank(rows, "int8")
    wanted = bank.nearest(queries, 5, threads=1)
    with ThreadPoolExecutor(6) as pool:
        for got in pool.map(lambda i: bank.nearest(queries, 5, threads=i % 4), range(60)):
            assert_same(got, wanted)


# In a process of its own, whose address space is limited: stacks for hundreds of threads do not fit into it.
NO_THREADS = """
import resource
import numpy as np
from flawscope import cpp_ext

features = np.random.default_rng(0).standard_normal((60_000, 8)).astype(np.float32)
cpp_ext.nearest(features, features[:9], 1, threads=2)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)

def many():
    try:
        cpp_ext.kcenter_greedy(features, 100, 0, threads=400)
    except MemoryError:
        print("refused", flush=True)

# While another call holds the threads that all calls share, and then with those.
def progress(done, total):
    if done == 64:
        many()

cpp_ext.kcenter_greedy(features, 100, 0, progress, threads=2)
many()
print(len(set(cpp_ext.kcenter_greedy(features, 100, 0, threads=2).tolist())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of address space is Linux's")
@pytest.mark.skipif("FLAWSCOPE_SANITIZED" in os.environ, reason="AddressSanitizer needs the address space itself")
@pytest.mark.serial
def test_a_call_that_gets_no_threads_is_refused_and_harms_no_other():
    done = subprocess.run([sys.executable, "-c", NO_THREADS], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["refused", "refused", "100"]), done.stderr[-2000:]


def _child(connection, bank):
    connection.send([results(np.asarray, threads=3), bank.nearest(integers(40, 9, seed=1), 3, threads=3)])
    connection.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
def test_a_forked_process_has_threads_of_its_own():
    wanted = results(np.asarray, threads=3)  # the parent's threads are there by now, and the child inherits none
    bank = cpp_ext.Bank(integers(300, 9), threads=3)
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sender, bank))
        with warnings.catch_warnings():
            # Python 3.12 and newer warn of forks where there are threads; that they are safe here is the claim.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            process.start()
        sender.close()
        try:
            assert receiver.poll(60), "the child hangs"
            got, nearest = receiver.recv()
        finally:
            process.kill()
            process.join()
        assert_same(got, wanted)
        assert_same(nearest, bank.nearest(integers(40, 9, seed=1), 3, threads=3))
    assert_same(results(np.asarray, threads=3), wanted)  # and the parent kept its own
