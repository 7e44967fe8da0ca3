# On a fresh machine `make install` makes the environment; `make demo` and `make test` do so by themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := build/native/.built
CUDA   ?= AUTO
FP16   := $(VENV)/fp16/.installed

# ModelOpt pins another ONNX Runtime, so it lives beside the rest; tests of FP16 skip without it.
export FLAWSCOPE_MODELOPT_PYTHON ?= $(abspath $(VENV)/fp16/bin/python)
CMAKE  := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DPython_EXECUTABLE=$(abspath $(BIN)/python)

# As many processes as cores; a file's tests stay in one of them, so that its fixtures are made once.
WORKERS ?= $(shell nproc)
PYTEST  := $(BIN)/python -m pytest
SHARED  := -n $(WORKERS) --dist loadfile
# The files with tests that measure: to import all the others for these takes a third of a minute.
SERIAL   = $(shell grep -rl 'mark\.serial' tests --include='test_*.py')

.PHONY: install wheel release-check try-readme demo prepare test test-fast test-all test-variants families fuzz kills gpu-check check links format lean native sanitize site site-serve clean

install: $(NATIVE)
	@echo "flawscope is in $(VENV); next: source $(BIN)/activate"

# The wheel of this machine, audited, and tried in an empty environment; `make wheel WHEEL="--python python3.12"`, `--cuda`.
wheel: $(NATIVE)
	$(BIN)/python tools/make_wheel.py $(WHEEL)

# What a release needs, from the notes to the wheel; publishes nothing. See docs/release.md.
release-check: $(NATIVE)
	$(BIN)/python tools/release.py $(RELEASE)

# Every command of the README and the tutorials, pasted as printed, in a fresh clone; fetches gigabytes, takes a while.
try-readme: $(NATIVE)
	$(BIN)/python tools/try_readme.py $(TRY)

demo: $(NATIVE)
	$(BIN)/flawscope demo --out demo --overwrite

# The loop of a day's work: whatever takes more than a moment is left out.
test-fast: $(NATIVE)
	$(PYTEST) tests $(SHARED) -m "not slow and not long and not serial"

# What guards the project. What measures comes after the rest, alone; then the quick part once more as an AVX2 machine.
test: $(NATIVE) $(FP16)
	$(PYTEST) tests $(SHARED) -m "not slow and not serial"
	$(PYTEST) $(SERIAL) -m "serial and not slow"
	$(BIN)/python tools/test_variants.py --only avx2 $(SHARED) -m "not slow and not long and not serial"

test-all: test test-variants
	$(PYTEST) tests -m slow

# Other instruction sets, threads and examples; `make test-variants VARIANT="--only threads"` runs one.
test-variants: $(NATIVE) $(FP16)
	$(BIN)/python tools/test_variants.py $(VARIANT) $(SHARED) -m "not serial"

# Weights files of timm's families, from training to parity, into the table of docs/backbones.md; takes a while.
families: $(NATIVE)
	$(BIN)/python tools/backbone_families.py --page docs/backbones.md $(FAMILIES)

# Attacks for as long as one likes; `make fuzz FUZZ="--images 1000 --only image"`. See CONTRIBUTING.md.
fuzz: $(NATIVE)
	$(BIN)/python tools/fuzz.py $(FUZZ)

kills: $(NATIVE)
	$(BIN)/python tools/kill_harness.py $(KILLS)

# The CUDA part on this machine's GPU: build, checks, times. Installs nothing: an environment of `make` is used where there
# is one. `make gpu-check GPU="--minutes 5"`; see docs/gpu-check.md.
GPU_OUT ?= gpu-check.json
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tools/gpu_check.py --out $(GPU_OUT) $(GPU)

# Static checks and editors read a tree of links, because none of them follows the mapping of folders to packages. The
# installation makes it; here it learns of files that were added directly below core/ since.
links: $(STAMP)
	$(BIN)/python tools/linktree.py

check: links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd build/typing && ../../$(BIN)/lint-imports --config ../../pyproject.toml

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation: build/site opens from the file system, search included, and needs no network. A broken link fails.
site: links
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site: build/site/index.html"

site-serve: links
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --watch tools

# The lean install: one backend, no training, no reports. Proves size, import time and equal scores.
lean: $(NATIVE)
	$(BIN)/python tools/lean_install.py

# What the tests need, side by side with `make -j2 prepare`: kernels are compiled while packages are fetched.
prepare: $(NATIVE) $(FP16)

# The kernels are built here and not by pip, which would do it all again after every change. CUDA=OFF leaves CUDA out.
native: $(NATIVE)

$(NATIVE): $(STAMP) $(shell find cpp_ext -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cmake' -o -name CMakeLists.txt)
	$(CMAKE) -S cpp_ext -B build/native -DFLAWSCOPE_CUDA=$(CUDA)
	$(BIN)/cmake --build build/native
	$(BIN)/cmake --install build/native --prefix cpp_ext
	touch $(NATIVE)

# The kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(STAMP)
	$(CMAKE) -S cpp_ext -B build/sanitize -DFLAWSCOPE_CUDA=OFF -DFLAWSCOPE_SANITIZE=address,undefined
	$(BIN)/cmake --build build/sanitize
	$(BIN)/python tools/sanitize.py build/sanitize

$(STAMP): pyproject.toml setup.py tools/linktree.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "flawscope needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" "setuptools>=77"
	FLAWSCOPE_NATIVE=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev --group docs
	touch $(STAMP)

$(FP16): $(STAMP) tools/fp16_environment.py constraints-fp16.txt
	$(BIN)/python tools/fp16_environment.py $(VENV)/fp16

clean:
	rm -rf build demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
