"""The library for C and C++: the header in C99, a program linked to it, and sizes that no memory could have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from project_paths import ROOT

from flawscope import cpp_ext
from flawscope.cpp_ext import native

FOLDER = Path(cpp_ext.__file__).parent
# A build folder has the library beside the module, an installation in a folder of its own.
LIBRARY = next((path for path in FOLDER.glob("libflawscope_kernels.*")), FOLDER / "lib" / "libflawscope_kernels.so")
HEADER = FOLDER / "include" / "flawscope" / "patch_distance.h"

pytestmark = pytest.mark.skipif(not native.HAVE_NATIVE, reason=f"no native kernels: {native.MISSING_BECAUSE}")

PROGRAM = r"""
#include <flawscope/patch_distance.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define CHECK(claim) if (!(claim)) { printf("line %d: %s\n", __LINE__, #claim); return 1; }

static int stop_at_second(int64_t done, int64_t count, void* user) {
    (void)count;
    ++*(int*)user;
    return done >= 2;
}

int main(void) {
    const float rows[4 * 2] = {0, 0, 3, 4, 3, 4, -1, 0};
    const float queries[3 * 2] = {3, 3, -2, 0, NAN, 0};
    const uint16_t halves[2] = {0x4200, 0x4200}; /* 3, 3 in float16 */
    const flawscope_storage storages[3] = {FLAWSCOPE_STORE_FLOAT32, FLAWSCOPE_STORE_FLOAT16, FLAWSCOPE_STORE_INT8};
    const float bad_rows[2] = {1, INFINITY};
    float squared[6];
    int64_t found[6], chosen[4];
    flawscope_bank* bank = NULL;
    flawscope_gaussians *gaussians = NULL, *refused = NULL;
    int i, calls = 0;

    CHECK(flawscope_patch_distance_version() == FLAWSCOPE_PATCH_DISTANCE_VERSION);
    CHECK(flawscope_simd_level() != NULL && strcmp(flawscope_simd_level(), flawscope_simd_level_at(0)) == 0);
    for (i = 0; flawscope_simd_level_at(i) != NULL; ++i) CHECK(i < 10);
    CHECK(i > 0 && strcmp(flawscope_simd_level_at(i - 1), "scalar") == 0);
    CHECK(flawscope_simd_level_at(-1) == NULL);
    CHECK(flawscope_set_simd_level("nonsense") == FLAWSCOPE_BAD_ARGUMENT);
    CHECK(flawscope_set_simd_level(NULL) == FLAWSCOPE_BAD_ARGUMENT);
    for (i = -1; i < 1010; ++i) CHECK(strlen(flawscope_status_text(i)) > 3);

    CHECK(flawscope_nearest_rows(rows, 4, 2, queries, FLAWSCOPE_FLOAT32, 3, 2, 0, squared, found) == FLAWSCOPE_OK);
    CHECK(squared[0] == 1 && found[0] == 1 && squared[1] == 1 && found[1] == 2);
    CHECK(squared[2] == 1 && found[2] == 3 && squared[3] == 4 && found[3] == 0);
    CHECK(isnan(squared[4]) && found[4] == -1 && isnan(squared[5]) && found[5] == -1);

    for (i = 0; i < 3; ++i) {
        CHECK(flawscope_bank_create(rows, 4, 2, storages[i], 1, 0, 1, &bank) == FLAWSCOPE_OK);
        CHECK(flawscope_bank_bytes(bank) > 0 && strcmp(flawscope_bank_simd_level(bank), flawscope_simd_level()) == 0);
        CHECK(flawscope_bank_error_bound(bank) >= 0 && flawscope_bank_error_bound(bank) < 0.05);
        CHECK(flawscope_nearest(bank, queries, FLAWSCOPE_FLOAT32, 3, 1, 2, 2, squared, found) == FLAWSCOPE_OK);
        CHECK(squared[0] == 1 && found[0] == 1 && squared[1] == 1 && found[1] == 3 && found[2] == -1);
        CHECK(flawscope_nearest(bank, halves, FLAWSCOPE_FLOAT16, 1, 1, 2, 1, squared, found) == FLAWSCOPE_OK);
        CHECK(squared[0] == 1 && found[0] == 1);
        CHECK(flawscope_nearest(bank, NULL, FLAWSCOPE_FLOAT32, 0, 1, 0, 1, NULL, NULL) == FLAWSCOPE_OK);
        CHECK(flawscope_nearest(bank, queries, FLAWSCOPE_FLOAT32, 3, 1, 0, -1, squared, found) ==
              FLAWSCOPE_BAD_ARGUMENT);
        CHECK(flawscope_nearest(bank, queries, FLAWSCOPE_FLOAT32, 3, 5, 0, 1, squared, found) ==
              FLAWSCOPE_BAD_ARGUMENT);
        CHECK(flawscope_nearest(bank, queries, FLAWSCOPE_FLOAT32, 3, 2, 1, 1, squared, found) ==
              FLAWSCOPE_BAD_ARGUMENT);
        CHECK(flawscope_nearest(bank, queries, (flawscope_dtype)7, 3, 1, 0, 1, squared, found) ==
              FLAWSCOPE_BAD_ARGUMENT);
        flawscope_bank_destroy(bank);
    }
    flawscope_bank_destroy(NULL);
    CHECK(flawscope_bank_create(rows, 4, 2, FLAWSCOPE_STORE_INT8, 0, 0, 1, &bank) == FLAWSCOPE_OK);
    CHECK(flawscope_nearest(bank, queries, FLAWSCOPE_FLOAT32, 3, 1, 2, 1, squared, found) == FLAWSCOPE_BAD_ARGUMENT);
    flawscope_bank_destroy(bank);
    CHECK(flawscope_bank_create(bad_rows, 1, 2, FLAWSCOPE_STORE_FLOAT16, 0, 0, 1, &bank) == FLAWSCOPE_NOT_FINITE);
    CHECK(flawscope_bank_create(rows, 4, 2, (flawscope_storage)3, 1, 0, 1, &bank) == FLAWSCOPE_BAD_ARGUMENT);

    { /* two places side by side with two rows each; starts and reach are gone when they are used */
        const float patches[4 * 2] = {3, 4, -1, 0, NAN, 0, 3, 3};
        int64_t starts[3] = {0, 2, 4}, falling[3] = {0, 5, 4};
        int32_t reach[2] = {0, 1}, negative[2] = {0, -1};
        flawscope_windows* windows = NULL;
        CHECK(flawscope_windows_create(rows, 4, 2, falling, 1, 2, reach, 1, &windows) == FLAWSCOPE_BAD_ARGUMENT);
        CHECK(flawscope_windows_create(rows, 4, 2, starts, 1, 2, negative, 1, &windows) == FLAWSCOPE_BAD_ARGUMENT);
        CHECK(flawscope_windows_create(rows, 3, 2, starts, 1, 2, reach, 1, &windows) == FLAWSCOPE_BAD_ARGUMENT);
        CHECK(flawscope_windows_create(bad_rows, 1, 2, starts + 2, 1, 0, reach, 1, &windows) == FLAWSCOPE_BAD_ARGUMENT);
        CHECK(flawscope_windows_create(rows, 4, 2, starts, 1, 2, reach, 1, &windows) == FLAWSCOPE_OK);
        memset(starts, 0xff, sizeof starts);
        memset(reach, 0xff, sizeof reach);
        CHECK(flawscope_windows_bytes(windows) > 0 && flawscope_windows_computed(windows) == 0);
        CHECK(flawscope_windows_nearest(windows, patches, FLAWSCOPE_FLOAT32, 2, 2, squared, found) == FLAWSCOPE_OK);
        CHECK(squared[0] == 0 && found[0] == 1 && squared[1] == 0 && found[1] == 3);
        CHECK(isnan(squared[2]) && found[2] == -1 && squared[3] == 1 && found[3] == 1);
        CHECK(flawscope_windows_computed(windows) >= 2 * (2 + 4));
        CHECK(flawscope_windows_nearest(windows, NULL, FLAWSCOPE_FLOAT32, 0, 1, NULL, NULL) == FLAWSCOPE_OK);
        CHECK(flawscope_windows_nearest(windows, patches, FLAWSCOPE_FLOAT32, 2, -1, squared, found) ==
              FLAWSCOPE_BAD_ARGUMENT);
        CHECK(flawscope_windows_nearest(windows, patches, (flawscope_dtype)7, 2, 1, squared, found) ==
              FLAWSCOPE_BAD_ARGUMENT);
        { /* the same from a block of the rows */
            static char room[8192 + 64];
            char* const block = room + (64 - (uintptr_t)room % 64) % 64;
            const int64_t bytes = flawscope_windows_block_bytes(windows);
            int64_t again[2] = {0, 2}, all[3] = {0, 2, 4};
            int32_t far[2] = {0, 1};
            float other[8], kept = squared[3];
            flawscope_windows* opened = NULL;
            CHECK(flawscope_windows_simd_level() != NULL && bytes > 4096 && bytes <= 8192);
            CHECK(flawscope_windows_write_block(windows, block, bytes - 64) == FLAWSCOPE_BAD_ARGUMENT);
            CHECK(flawscope_windows_write_block(windows, block, bytes) == FLAWSCOPE_OK);
            memcpy(other, rows, sizeof other);
            other[7] += 1;
            CHECK(flawscope_windows_open_block(block, bytes, other, 4, 2, all, 1, 2, far, &opened) ==
                  FLAWSCOPE_OTHER_BLOCK);
            CHECK(flawscope_windows_open_block(block, bytes - 64, rows, 4, 2, all, 1, 2, far, &opened) ==
                  FLAWSCOPE_DAMAGED_BLOCK);
            CHECK(flawscope_windows_open_block(block, bytes, rows, 4, 2, again, 1, 1, far, &opened) ==
                  FLAWSCOPE_BAD_ARGUMENT);
            CHECK(flawscope_windows_open_block(block, bytes, rows, 4, 2, all, 1, 2, far, &opened) == FLAWSCOPE_OK);
            CHECK(flawscope_windows_nearest(opened, patches, FLAWSCOPE_FLOAT32, 2, 1, squared, found) == FLAWSCOPE_OK);
            CHECK(squared[3] == kept);
            flawscope_windows_destroy(opened);
        }
        flawscope_windows_destroy(windows);
        flawscope_windows_destroy(NULL);
    }

    CHECK(flawscope_kcenter_greedy(rows, 4, 2, 4, 0, 2, NULL, NULL, chosen, NULL) == FLAWSCOPE_OK);
    CHECK(chosen[0] == 0 && chosen[1] == 1 && chosen[2] == 3 && chosen[3] == 2);
    CHECK(flawscope_kcenter_greedy(rows, 4, 2, 4, 0, 1, stop_at_second, &calls, chosen, NULL) == FLAWSCOPE_CANCELLED);
    CHECK(calls == 2);
    CHECK(flawscope_kcenter_greedy(bad_rows, 1, 2, 1, 0, 1, NULL, NULL, chosen, NULL) == FLAWSCOPE_NOT_FINITE);

    { /* W = diag(2, 3) and W = 0; both arrays are gone when they are used */
        float mean[2 * 2] = {1, 1, 0, 0}, whitening[2 * 4] = {2, 0, 0, 3, 0, 0, 0, 0};
        CHECK(flawscope_gaussians_create(mean, whitening, 2, 2, 1, &gaussians) == FLAWSCOPE_OK);
        memset(mean, 0xff, sizeof mean);
        memset(whitening, 0xff, sizeof whitening);
    }
    CHECK(flawscope_gaussians_bytes(gaussians) > 0);
    CHECK(flawscope_mahalanobis(gaussians, rows, 2, 1, squared) == FLAWSCOPE_OK);
    CHECK(squared[0] == 4 + 9 && squared[1] == 0 && squared[2] == 16 + 81 && squared[3] == 0);
    CHECK(flawscope_mahalanobis(gaussians, NULL, 0, 1, NULL) == FLAWSCOPE_OK);
    flawscope_gaussians_destroy(gaussians);
    flawscope_gaussians_destroy(NULL);

    { /* W = [[2, 1], [0, 3]], as float16 */
        float mean[2] = {1, 1};
        unsigned short triangle[3] = {0x4000, 0x3c00, 0x4200};
        CHECK(flawscope_gaussians_create_triangles(mean, triangle, FLAWSCOPE_FLOAT16, 1, 2, 1, &gaussians) ==
              FLAWSCOPE_OK);
        triangle[1] = 0x7c00; /* infinity */
        CHECK(flawscope_gaussians_create_triangles(mean, triangle, FLAWSCOPE_FLOAT16, 1, 2, 1, &refused) ==
              FLAWSCOPE_NOT_FINITE);
        float patch[2] = {2, 3};
        CHECK(flawscope_mahalanobis(gaussians, patch, 1, 1, squared) == FLAWSCOPE_OK);
        CHECK(squared[0] == 2 * 2 + 7 * 7);
        flawscope_gaussians_destroy(gaussians);
    }

    { /* the same from a block, which is of these numbers alone */
        static char room[8192 + 64];
        char* const block = room + (64 - (uintptr_t)room % 64) % 64;
        float mean[2] = {1, 1}, patch[2] = {2, 3};
        unsigned short triangle[3] = {0x4000, 0x3c00, 0x4200};
        const int half = FLAWSCOPE_FLOAT16;
        const int64_t bytes = flawscope_gaussians_block_bytes(half, 1, 2);
        CHECK(bytes > 4096 && bytes <= 8192 && bytes % 64 == 0);
        CHECK(flawscope_gaussians_block_bytes(half, 0, 2) == 0 && flawscope_gaussians_block_bytes(7, 1, 2) == 0);
        CHECK(flawscope_gaussians_write_block(mean, triangle, half, 1, 2, 1, block, bytes - 64) ==
              FLAWSCOPE_BAD_ARGUMENT);
        CHECK(flawscope_gaussians_write_block(mean, triangle, half, 1, 2, 1, block, bytes) == FLAWSCOPE_OK);
        CHECK(flawscope_gaussians_open_block(block, bytes - 64, mean, triangle, half, 1, 2, 1, &gaussians) ==
              FLAWSCOPE_DAMAGED_BLOCK);
        CHECK(flawscope_gaussians_open_block(block + 1, bytes, mean, triangle, half, 1, 2, 1, &gaussians) ==
              FLAWSCOPE_BAD_ARGUMENT);
        CHECK(flawscope_gaussians_open_block(block, bytes, mean, triangle, half, 1, 2, 1, &gaussians) == FLAWSCOPE_OK);
        mean[1] = 2;
        CHECK(flawscope_gaussians_open_block(block, bytes, mean, triangle, half, 1, 2, 1, &refused) ==
              FLAWSCOPE_OTHER_BLOCK);
        triangle[1] = 0x7c00; /* infinity */
        CHECK(flawscope_gaussians_write_block(mean, triangle, half, 1, 2, 1, block, bytes) == FLAWSCOPE_NOT_FINITE);
        CHECK(flawscope_mahalanobis(gaussians, patch, 1, 1, squared) == FLAWSCOPE_OK);
        CHECK(squared[0] == 2 * 2 + 7 * 7);
        flawscope_gaussians_destroy(gaussians);
    }
    puts("done");
    return 0;
}
"""


def test_the_library_and_its_header_come_with_the_package():
    assert LIBRARY.is_file()
    assert HEADER.is_file()


def has_compiler(name):
    try:
        return subprocess.run([name, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def link_options():
    return [f"-I{HEADER.parent.parent}", f"-L{LIBRARY.parent}", "-lflawscope_kernels", f"-Wl,-rpath,{LIBRARY.parent}"]


def build_and_run(compiler, source, target):
    built = subprocess.run(
        [*compiler, str(source), *link_options(), "-o", str(target), "-lm"], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return subprocess.run([str(target)], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(not has_compiler("cc"), reason="no C compiler (cc)")
def test_a_c_program_links_the_library(tmp_path):
    source = tmp_path / "program.c"
    source.write_text(PROGRAM)
    done = build_and_run(["cc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror"], source, tmp_path / "program")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stdout + done.stderr


@pytest.mark.skipif(not has_compiler("cc"), reason="no C compiler (cc)")
@pytest.mark.parametrize("standard", ["c99", "c11"])
def test_the_header_stands_alone(tmp_path, standard):
    source = tmp_path / "alone.c"
    source.write_text("#include <flawscope/patch_distance.h>\n#include <flawscope/patch_distance.h>\n")
    command = ["cc", f"-std={standard}", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", str(source)]
    done = subprocess.run([*command, f"-I{HEADER.parent.parent}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


EXAMPLE = ROOT / "cpp_ext" / "examples" / "nearest.cpp"


@pytest.mark.skipif(not has_compiler("c++"), reason="no C++ compiler (c++)")
def test_the_example_runs(tmp_path):
    done = build_and_run(["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror"], EXAMPLE, tmp_path / "nearest")
    assert done.returncode == 0, done.stderr
    assert "patch 300," in done.stdout  # the one that was moved away from the bank


# In a process of its own: where a size is not refused, the pointers below are followed.
SIZES = """
import ctypes

library = ctypes.CDLL({library!r})
P, L, I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
library.flawscope_bank_create.argtypes = [P, L, L, I, I, I, I, P]
library.flawscope_nearest.argtypes = [P, P, I, L, I, I, I, P, P]
library.flawscope_nearest_rows.argtypes = [P, L, L, P, I, L, I, I, P, P]
library.flawscope_kcenter_greedy.argtypes = [P, L, L, L, L, I, P, P, P, P]
library.flawscope_gaussians_create.argtypes = [P, P, L, L, I, P]
library.flawscope_gaussians_create_triangles.argtypes = [P, P, I, L, L, I, P]
library.flawscope_gaussians_write_block.argtypes = [P, P, I, L, L, I, P, L]
library.flawscope_gaussians_open_block.argtypes = [P, L, P, P, I, L, L, I, P]
library.flawscope_mahalanobis.argtypes = [P, P, L, I, P]
library.flawscope_windows_create.argtypes = [P, L, L, P, L, L, P, I, P]
library.flawscope_windows_open_block.argtypes = [P, L, P, L, L, P, L, L, P, P]
library.flawscope_windows_nearest.argtypes = [P, P, I, L, I, P, P]
BAD = 64  # nothing lies there: to touch it ends the process
ONE = (ctypes.c_float * 16)(*[1.0] * 16)
START, REACH = (ctypes.c_int64 * 2)(0, 2), (ctypes.c_int32 * 1)(0)
bank, gaussians, windows = P(), P(), P()
assert library.flawscope_windows_create(ONE, 2, 2, START, 1, 1, REACH, 1, ctypes.byref(windows)) == 0
assert library.flawscope_bank_create(ONE, 2, 2, 0, 1, 0, 1, ctypes.byref(bank)) == 0
assert library.flawscope_gaussians_create(ONE, ONE, 2, 2, 1, ctypes.byref(gaussians)) == 0
out = ctypes.byref(P())

def bank_of(m, d, storage=0):
    return library.flawscope_bank_create(BAD, m, d, storage, 1, 0, 1, out)

def nearest(n, k=1):
    return library.flawscope_nearest(bank, BAD, 0, n, k, 0, 1, BAD, BAD)

def windows_of(m, d, height, width):
    return library.flawscope_windows_create(BAD, m, d, BAD, height, width, BAD, 1, out)

def windows_of_block(m, d, height, width, bytes=4096):
    return library.flawscope_windows_open_block(BAD, bytes, BAD, m, d, BAD, height, width, BAD, out)

def within(images):
    return library.flawscope_windows_nearest(windows, BAD, 0, images, 1, BAD, BAD)

def rows(m, d, n, k=1):
    return library.flawscope_nearest_rows(BAD, m, d, BAD, 0, n, k, 1, BAD, BAD)

def kcenter(n, d, count=1, first=0):
    return library.flawscope_kcenter_greedy(BAD, n, d, count, first, 1, None, None, BAD, None)

def gaussians_of(p, d):
    return library.flawscope_gaussians_create(BAD, BAD, p, d, 1, out)

def triangles_of(p, d, dtype=0):
    return library.flawscope_gaussians_create_triangles(BAD, BAD, dtype, p, d, 1, out)

def tables_block(p, d, dtype=0, bytes=4096):
    return library.flawscope_gaussians_write_block(BAD, BAD, dtype, p, d, 1, BAD, bytes)

def tables_of_block(p, d, dtype=0, bytes=4096):
    return library.flawscope_gaussians_open_block(BAD, bytes, BAD, BAD, dtype, p, d, 1, out)

def mahalanobis(n):
    return library.flawscope_mahalanobis(gaussians, BAD, n, 1, BAD)

print({call}, flush=True)
"""
LARGEST = 2**63 - 1
CALLS = [
    *(f"bank_of({m}, {d}, {storage})" for m, d in ((0, 4), (4, 0), (-1, 4), (4, -1)) for storage in (0, 1, 2)),
    *(
        f"bank_of({m}, {d})"
        for m, d in ((2**31, 1), (2**32 + 1, 1), (2**33, 2**33), (2**31, 2**31), (LARGEST, LARGEST))
    ),
    *(f"bank_of({m}, {d})" for m, d in ((1, LARGEST), (LARGEST, 1), (2, 2**62), (2**30, 2**33), (2**30, 2**34 + 1))),
    "bank_of(1, 65_537, 2)",
    *(f"bank_of(1, {d}, {storage})" for d in (2**57, 2**58, 2**59) for storage in (0, 1)),
    *(f"nearest({n})" for n in (-1, LARGEST, 2**62, 2**60)),
    *(f"nearest(1, {k})" for k in (0, -1, 3, 65, 2**31 - 1, -(2**31))),
    *(f"windows_of({m}, {d}, 1, 1)" for m, d in ((0, 4), (4, 0), (-1, 4), (2**31, 1), (2, 2**62), (1, LARGEST))),
    *(f"windows_of(4, 4, {h}, {w})" for h, w in ((0, 1), (1, -1), (2**16, 2**16), (2**33, 2**33), (LARGEST, LARGEST))),
    *(f"windows_of_block({m}, {d}, 1, 1)" for m, d in ((0, 4), (4, 0), (-1, 4), (2**31, 1), (2, 2**62), (1, LARGEST))),
    *(f"windows_of_block(4, 4, {h}, {w})" for h, w in ((0, 1), (1, -1), (2**16, 2**16), (LARGEST, LARGEST))),
    *(f"windows_of_block(4, 4, 1, 1, {size})" for size in (-1, -LARGEST)),
    *(f"within({images})" for images in (-1, LARGEST, 2**62, 2**60)),
    *(f"rows({m}, {d}, 1)" for m, d in ((0, 1), (1, 0), (-1, 1), (2**31, 1), (2**33, 2**33), (2, 2**62), (1, LARGEST))),
    *(f"rows(1, {d}, 1)" for d in (2**57, 2**58, 2**59)),
    *(f"rows(64, 4, {n})" for n in (-1, LARGEST, 2**62, 2**60, 2**58)),
    *(f"rows(64, 1, {n}, 64)" for n in (2**54, 2**55, 2**57)),
    *(f"rows(2**31 - 1, 4, 1, {k})" for k in (0, 65)),
    *(f"kcenter({n}, {d})" for n, d in ((0, 4), (4, 0), (-1, 4), (2**31, 1), (2**33, 2**33), (2, 2**62), (LARGEST, 1))),
    *(f"kcenter(1, {d})" for d in (LARGEST, 2**60)),
    *(f"kcenter(4, 4, {count}, {first})" for count, first in ((0, 0), (5, 0), (-1, 0), (1, 4), (1, -1), (LARGEST, 0))),
    *(f"gaussians_of({p}, {d})" for p, d in ((0, 4), (4, 0), (-1, 4), (4, -1), (2**31, 1), (2**16, 2**16), (1, 2**31))),
    *(f"gaussians_of({p}, {d})" for p, d in ((2**62, 2), (2**33, 2**33), (LARGEST, LARGEST), (1, LARGEST), (1, 2**32))),
    *(f"triangles_of({p}, {d})" for p, d in ((0, 4), (4, -1), (2**31, 1), (2**16, 2**16), (2**62, 2), (1, LARGEST))),
    *(f"triangles_of(1, 4, {dtype})" for dtype in (2, -1)),
    *(
        f"{name}({p}, {d})"
        for name in ("tables_block", "tables_of_block")
        for p, d in ((0, 4), (4, -1), (2**31, 1), (2**16, 2**16), (2**62, 2), (1, LARGEST))
    ),
    *(f"{name}(1, 4, {dtype})" for name in ("tables_block", "tables_of_block") for dtype in (2, -1)),
    *(f"{name}(1, 4, 0, {size})" for name in ("tables_block", "tables_of_block") for size in (-1, -LARGEST)),
    *(f"mahalanobis({n})" for n in (-1, LARGEST, 2**62, 2**60)),
]


def test_sizes_that_overflow_are_refused_before_memory_is_touched():
    # One process each would take half a minute: a process forks for each call, so that one that falls fells no other.
    calls = "\n".join(f"    ({call!r}, lambda: {call})," for call in CALLS)
    code = SIZES.format(library=str(LIBRARY), call="'ready'") + (
        "import os\n"
        f"for name, call in (\n{calls}\n):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(call())\n"
        "    status = os.waitpid(child, 0)[1]\n"
        "    if status != 1 << 8:\n"
        "        print(name, f'status {status >> 8}' if status & 127 == 0 else f'signal {status & 127}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ready\n"
