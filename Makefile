# Builds, tests and demonstrates the project; `make help` lists what there is.
# Settings, as in `make PYTHON=python3.12 VENV=.venv-3.12 test`:
#   PYTHON       the Python that a new virtual environment is made with (3.10 and newer)
#   VENV         the folder of the virtual environment
#   JOBS         how many things are built or checked at once
#   WERROR       OFF lets compiler warnings pass, should a newer compiler have more of them than ours
#   TEXT         `make demo`: the text file to calibrate on
#   DEMO_ARGS    `make demo`: further arguments of examples/smollm2_demo.py
#   FUZZ_SECONDS `make fuzz`: how long each target runs
#   FUZZ_RUNS    `make fuzz-ci`: how many inputs each target gets
#   WHEEL_PYTHONS `make wheel`, `make wheel-test`: for which Pythons; one that is not there is left out
#   CTEST_ARGS, PYTEST_ARGS   `make test`: further arguments, as -R observer or -k record

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:

# A Python named by the user must be the one that the environment has; the default need not be.
ifneq ($(origin PYTHON),undefined)
  export PYTHON_CHOSEN := yes
endif
PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell nproc)
WERROR ?= ON
TEXT ?=
DEMO_ARGS ?=
CTEST_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
FUZZ_SECONDS ?= 600
WHEEL_PYTHONS ?= python3.10 python3.11 python3.12 python3.13
WHEEL_ARGS ?=
FUZZ_ARGS ?= -max_total_time=$(FUZZ_SECONDS)
FUZZ_CORPUS ?= build/fuzz/corpus
FUZZ_KEPT := tests/fuzz/corpus
FUZZ_RUNS ?= 20000

# The library is compiled for the tests, for the package and again in every clone: the same sources to the same objects.
ifneq ($(shell command -v ccache),)
  export CMAKE_CXX_COMPILER_LAUNCHER ?= ccache
  export CCACHE_BASEDIR ?= $(CURDIR)
  export CCACHE_NOHASHDIR ?= 1
endif

BIN := $(abspath $(VENV))/bin
venv = @scripts/venv.sh "$(VENV)" "$(PYTHON)"
configure = "$(BIN)/cmake" -S . -G Ninja -DCMAKE_MAKE_PROGRAM="$(BIN)/ninja" -DAMCT_WERROR=$(WERROR) --log-level=WARNING
ctest_args = --output-on-failure --no-tests=error -j$(JOBS) $(CTEST_ARGS)
without_passed = { grep -v -E '^ *(Start +[0-9]+:|[0-9]+/[0-9]+ Test .* Passed )' || true; }

# scikit-build-core keeps its build tree here, one for each version of Python.
PYTHON_BUILD = build/python-$(shell "$(BIN)/python" -c 'import sys; print(sys.implementation.cache_tag)')

# A folder's time changes when a file is added or removed, a file's when it is edited.
PACKAGE_SOURCES := CMakeLists.txt VERSION pyproject.toml README.md \
  $(shell find cmake include python src -name __pycache__ -prune -o \( -type d -o -type f ! -name '.*' \) -print)

CPP_FOLDERS := $(wildcard src include tests/cpp tests/fuzz examples/cpp python/bindings bench)
CPP_HEADERS := $(shell find $(CPP_FOLDERS) -name '*.h')
CPP_SOURCES := $(shell find $(CPP_FOLDERS) -name '*.cc')
# The consumer is a project of its own, which its test builds; benchmarks and fuzz targets have builds of their own.
TIDY_STAMPS := $(patsubst %,build/tidy/%.ok,$(filter-out tests/cpp/consumer/% tests/fuzz/% bench/%,$(CPP_SOURCES)))
PYTHON_FOLDERS := $(wildcard python tests/python tests/docs examples scripts bench)

##@ Use
.PHONY: help demo
help: ## this list
	@awk -F ':.*## ' '/^##@ /{printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: system ## calibrate SmolLM2 on real text and show the result; TEXT=FILE takes another text
	$(venv) build runtime demo model
	@$(MAKE) package
	@"$(BIN)/python" examples/smollm2_demo.py $(if $(TEXT),--text "$(TEXT)") $(DEMO_ARGS)

##@ Development
.PHONY: build test readers fuzz fuzz-ci fuzz-keep check lint asan tsan valgrind coverage mutation docs docs-update
.PHONY: bench format
build: cpp package ## build the C++ library, its tests and the Python package

test: system ## run the C++ tests (ctest), then the Python tests (pytest)
	$(venv) build runtime demo model test
	@$(MAKE) cpp package
	@echo "== C++ tests"
	@"$(BIN)/ctest" --test-dir build/release $(ctest_args) | $(without_passed)
	@echo "== Python tests"
	@"$(BIN)/python" -m pytest --numprocesses=$(JOBS) --dist=loadfile $(PYTEST_ARGS)

# Half a gigabyte of wheels, of which little is kept.
readers: system ## fetch the code by which runtimes read factors: `make test` then runs it, too
	$(venv) build
	@"$(BIN)/python" scripts/fetch_readers.py build/readers

check: lint asan docs ## what to run beside `make test` before a change is offered; CI runs more (.ci/run)

docs: system ## build the documentation site into site/, warnings as errors
	$(venv) build runtime docs
	@$(MAKE) package
	@echo "== site"
	@NO_MKDOCS_2_WARNING=1 "$(BIN)/mkdocs" build --strict --quiet

docs-update: system ## run the commands of the pages, and write what they print into the pages
	$(venv) build runtime demo model test
	@$(MAKE) package
	@UPDATE_DOCS=1 "$(BIN)/python" -m pytest tests/docs $(PYTEST_ARGS)

lint: system ## clang-format, clang-tidy, ruff, mypy
	$(venv) build runtime lint
	@$(MAKE) lint-format lint-ruff
	@$(MAKE) cpp package
	@$(MAKE) lint-mypy lint-tidy

# Without the command, which calls the library and takes long to compile.
asan: system ## build the C++ tests with ASan and UBSan and run them
	$(venv) build
	@$(configure) -B build/asan -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O0 -g1 -D_GLIBCXX_ASSERTIONS" \
	  -DAMCT_SANITIZE=address,undefined -DAMCT_BUILD_CLI=OFF
	@"$(BIN)/cmake" --build build/asan -j$(JOBS)
	@echo "== C++ tests, ASan and UBSan"
	@ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  "$(BIN)/ctest" --test-dir build/asan $(ctest_args) | $(without_passed)

# The tests in which threads meet (tests/cpp/CMakeLists.txt), on a oneTBB that tells the sanitizer what it does.
tsan: system ## build the C++ tests of threads with ThreadSanitizer and run them
	$(venv) build
	@scripts/thread_sanitized_tbb.sh build/tsan-tbb "$(BIN)/cmake" "$(BIN)/ninja" $(JOBS)
	@$(configure) -B build/tsan -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1" -DAMCT_SANITIZE=thread -DAMCT_TESTS=threads \
	  -DAMCT_BUILD_CLI=OFF -DAMCT_BUILD_SHARED=OFF -DAMCT_BUILD_EXAMPLES=OFF
	@"$(BIN)/cmake" --build build/tsan -j$(JOBS) --target amct_tests
	@echo "== C++ tests, TSan"
	@LD_LIBRARY_PATH=$(CURDIR)/build/tsan-tbb/installed/lib TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 \
	  "$(BIN)/ctest" --test-dir build/tsan -R amct_tests $(ctest_args) | $(without_passed)

# At least so many percent of the lines of the library (without the command) are run by its tests. Without those that
# count calls of the system, of which gcov makes some itself, and those that only do the same more often, or with more.
COVERED := 95
coverage: system ## which lines and branches the C++ tests run: build/coverage/report/index.html
	$(venv) build coverage
	@$(configure) -B build/coverage -DCMAKE_BUILD_TYPE=Release -DAMCT_COVERAGE=ON -DAMCT_BUILD_SHARED=OFF -DAMCT_BUILD_EXAMPLES=OFF
	@"$(BIN)/cmake" --build build/coverage -j$(JOBS)
	@find build/coverage -name '*.gcda' -delete
	@echo "== C++ tests, coverage"
	@for shard in $$(seq 0 $$(($(JOBS) - 1))); do echo "$$shard"; done | xargs -P $(JOBS) -I{} env \
	  GTEST_TOTAL_SHARDS=$(JOBS) GTEST_SHARD_INDEX={} build/coverage/tests/cpp/amct_tests --gtest_brief=1 \
	  --gtest_filter=-FaultsTest.*:SessionStressTest.*:*SoakTest.*:LimitsTest.*:*MemoryTest.*:HostileTest.JsonOfOtherTypes
	@"$(BIN)/ctest" --test-dir build/coverage -R '^c_api$$' $(ctest_args) | $(without_passed)
	@mkdir -p build/coverage/report
	@"$(BIN)/gcovr" --root . --filter src/ --filter include/ --exclude src/cli/ -j $(JOBS) \
	  --exclude-throw-branches --exclude-unreachable-branches --merge-lines \
	  --html-details build/coverage/report/index.html --json-summary build/coverage/report/summary.json \
	  --txt --print-summary --fail-under-line $(COVERED) build/coverage

# universalmutator wants packages that nothing else should see.
MUTATION_VENV ?= .venv-mutation
MUTATION_SOURCES ?= $(wildcard src/search/*.cc)
MUTATION_ARGS ?=
mutation: system ## change lines of the searches; does a test fail? MUTATION_ARGS='--mutants 100 --seed 2'
	$(venv) build
	@scripts/venv.sh "$(MUTATION_VENV)" "$(PYTHON)" mutation
	@$(configure) -B build/mutation -DCMAKE_BUILD_TYPE=Release -DAMCT_TESTS=search \
	  -DAMCT_BUILD_CLI=OFF -DAMCT_BUILD_SHARED=OFF -DAMCT_BUILD_EXAMPLES=OFF
	@"$(BIN)/cmake" --build build/mutation -j$(JOBS) --target amct_tests
	@"$(MUTATION_VENV)/bin/python" scripts/mutation.py $(MUTATION_SOURCES) --build build/mutation --ninja "$(BIN)/ninja" \
	  --jobs $(JOBS) --json build/mutation/outcomes.json $(MUTATION_ARGS)

# Memory that was never written, which the sanitizers do not see, in the optimized library as it is shipped.
MEMCHECK := valgrind --quiet --error-exitcode=99 --suppressions=tests/cpp/valgrind.supp \
  --leak-check=full --show-leak-kinds=definite,indirect --errors-for-leak-kinds=definite,indirect
valgrind: system ## run C++ tests of the optimized library under Valgrind's memcheck
	@scripts/system_packages.sh requirements/debian-ci.txt
	@$(MAKE) cpp
	@echo "== C++ tests, Valgrind"
	@$(MEMCHECK) build/release/tests/cpp/amct_tests --gtest_brief=1 \
	  --gtest_filter="-$$(sed -e 's/#.*//' -e '/^ *$$/d' tests/cpp/valgrind_skips.txt | paste -s -d :)"
	@mkdir -p build/valgrind
	@$(MEMCHECK) build/release/tests/cpp/amct_c_test build/valgrind

bench: system ## run the C++ benchmarks; BENCH_ARGS=--benchmark_filter=calibrate/per_tensor
	$(venv) build bench
	@$(configure) -B build/bench -DCMAKE_BUILD_TYPE=Release -DAMCT_BUILD_BENCH=ON -DAMCT_BUILD_TESTS=OFF
	@"$(BIN)/cmake" --build build/bench -j$(JOBS) --target amct_bench
	@build/bench/bench/amct_bench --benchmark_out=build/bench/results.json --benchmark_out_format=json $(BENCH_ARGS) | \
	  "$(BIN)/python" bench/table.py --follow build/bench/results.json
	@"$(BIN)/python" bench/plot.py build/bench/results.json

# The peers want other versions than ours; one that cannot be installed is named as such in the table.
PEERS_VENV ?= .venv-peers

.PHONY: bench-peers bench-memory bench-model bench-reach bench-ranks bench-device
bench-peers: system ## time, memory and error beside other projects; BENCH_ARGS='--processes 5'
	$(venv) build runtime
	@$(MAKE) package
	@scripts/venv.sh "$(PEERS_VENV)" "$(PYTHON)" bench-peers || echo "warning: the peers are not all installed" >&2
	@"$(BIN)/python" bench/peers.py --peers-python "$(PEERS_VENV)/bin/python" --json build/bench/peers.json $(BENCH_ARGS)

bench-memory: system ## peak memory by the number of batches; BENCH_ARGS='--dtypes bfloat16'
	$(venv) build runtime
	@$(MAKE) package
	@"$(BIN)/python" bench/memory.py --json build/bench/memory.json $(BENCH_ARGS)

bench-model: system ## what calibrating SmolLM2 costs beside its own forward; BENCH_ARGS='--tokens 512'
	$(venv) build runtime demo model
	@$(MAKE) package
	@"$(BIN)/python" bench/model.py --json build/bench/model.json $(BENCH_ARGS)

bench-reach: system ## how far factors hold on SmolLM2; BENCH_ARGS='--text FILE --table settings'
	$(venv) build runtime demo model
	@$(MAKE) package
	@"$(BIN)/python" bench/reach.py --json build/bench/reach.json $(BENCH_ARGS)

bench-ranks: system ## what many processes that calibrate together move and wait for; BENCH_ARGS='--ranks 64'
	$(venv) build runtime
	@$(MAKE) package
	@"$(BIN)/python" bench/ranks.py $(BENCH_ARGS)

bench-device: system ## what calibration costs on a GPU; says so where there is none
	$(venv) build runtime
	@$(MAKE) package
	@"$(BIN)/python" bench/device.py --json build/bench/device.json $(BENCH_ARGS)

# What crashes a target is kept in build/fuzz/crashes; a corpus is kept from run to run.
FUZZ_TARGETS := config definition params record counts export c_api
fuzz: system ## feed every parser and reader with what no one wrote; FUZZ_SECONDS=60
	$(venv) build
	@scripts/system_packages.sh requirements/debian-fuzz.txt
	@$(configure) -B build/fuzz -DCMAKE_CXX_COMPILER=clang++-19 -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" -DAMCT_SANITIZE=address,undefined,fuzzer-no-link \
	  -DAMCT_WERROR=OFF -DAMCT_BUILD_FUZZ=ON -DAMCT_BUILD_TESTS=OFF -DAMCT_BUILD_CLI=OFF -DAMCT_BUILD_EXAMPLES=OFF -DAMCT_BUILD_SHARED=OFF
	@"$(BIN)/cmake" --build build/fuzz -j$(JOBS)
	@mkdir -p build/fuzz/crashes $(FUZZ_TARGETS:%=$(FUZZ_CORPUS)/%) $(FUZZ_TARGETS:%=$(FUZZ_KEPT)/%)
	@build/fuzz/tests/fuzz/fuzz_seeds build/fuzz/seeds tests/golden
	@printf '%s\n' $(FUZZ_TARGETS) | ASAN_SYMBOLIZER_PATH=$$(command -v llvm-symbolizer-19) xargs -P $(JOBS) -I{} sh -c 'build/fuzz/tests/fuzz/fuzz_{} \
	  $(FUZZ_ARGS) -dict=tests/fuzz/{}.dict -timeout=20 -rss_limit_mb=3072 -print_final_stats=1 -artifact_prefix=build/fuzz/crashes/{}- \
	  $(FUZZ_CORPUS)/{} $(FUZZ_KEPT)/{} build/fuzz/seeds/{} > build/fuzz/{}.log 2>&1 \
	  && echo "{}: $$(sed -n "s/^stat::number_of_executed_units: *//p" build/fuzz/{}.log) inputs, no crash" \
	  || { tail -40 build/fuzz/{}.log; echo "{}: CRASH, see build/fuzz/{}.log"; exit 255; }'

# The same inputs each time: no two runs differ but for what is tested.
fuzz-ci: ## the same for a number of inputs that is fixed, from what tests/fuzz/corpus holds
	@rm -rf build/fuzz/corpus-ci
	@$(MAKE) fuzz FUZZ_CORPUS=build/fuzz/corpus-ci FUZZ_ARGS='-runs=$(FUZZ_RUNS) -seed=1'

fuzz-keep: ## put what reaches farthest of what fuzzing found into tests/fuzz/corpus
	@scripts/fuzz_keep.sh $(FUZZ_CORPUS) $(FUZZ_TARGETS)

format: system ## format the C++ and Python sources in place
	$(venv) build runtime lint
	@"$(BIN)/clang-format" -i $(CPP_HEADERS) $(CPP_SOURCES)
	@"$(BIN)/ruff" check --fix $(PYTHON_FOLDERS)
	@"$(BIN)/ruff" format $(PYTHON_FOLDERS)

##@ Packages
.PHONY: wheel wheel-test wheel-again
wheel: system ## build the source distribution and wheels into dist/; WHEEL_PYTHONS=python3.12
	$(venv) build wheel
	@CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) "$(BIN)/python" scripts/build_wheels.py --werror $(WERROR) $(WHEEL_PYTHONS)

wheel-test: system ## what is in dist/, and whether it runs where there is no compiler; WHEEL_ARGS=--without-torch
	$(venv) build wheel
	@"$(BIN)/python" -m pytest --confcutdir=tests/wheel tests/wheel --pythons "$(WHEEL_PYTHONS)" $(WHEEL_ARGS)

# In folders of other names and lengths. CCACHE_DISABLE=1 compiles all again, too.
wheel-again: system ## build packages and library once more elsewhere: they must be the same bits
	$(venv) build wheel
	@CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) "$(BIN)/python" scripts/build_wheels.py --werror $(WERROR) \
	  --work build/wheel-in-another-place --out build/wheel-in-another-place/dist $(WHEEL_PYTHONS)
	@diff --recursive --brief build/wheel/raw build/wheel-in-another-place/raw
	@diff --recursive --brief dist build/wheel-in-another-place/dist
	@cd dist && sha256sum *
	@for folder in build/install build/install-again-elsewhere; do \
	  $(configure) -B $$folder -DCMAKE_BUILD_TYPE=Release -DAMCT_BUILD_TESTS=OFF -DAMCT_BUILD_EXAMPLES=OFF; \
	  "$(BIN)/cmake" --build $$folder -j$(JOBS); \
	  rm -rf $$folder/prefix; \
	  "$(BIN)/cmake" --install $$folder --prefix $$folder/prefix >/dev/null; \
	done
	@diff --recursive --brief build/install/prefix build/install-again-elsewhere/prefix
	@! grep --recursive --files-with-matches --fixed-strings "$(CURDIR)" build/install/prefix
	@find build/install/prefix -type f -name '*amct*' ! -name '*.h' | sort | xargs sha256sum

##@ Cleaning
.PHONY: clean distclean
clean: ## remove what was built
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis

distclean: clean ## remove the virtual environments, too
	rm -rf "$(VENV)" "$(PEERS_VENV)" "$(MUTATION_VENV)"

# The steps of the targets above.
.PHONY: system cpp package lint-format lint-ruff lint-mypy lint-tidy tidy-files
system:
	@scripts/system_packages.sh

cpp: system
	$(venv) build
	@$(configure) -B build/release -DCMAKE_BUILD_TYPE=Release
	@"$(BIN)/cmake" --build build/release -j$(JOBS)

package: system
	$(venv) build runtime
	@$(MAKE) "$(VENV)/.installed/package"

# Without build isolation: the pinned tools of the environment build it, and a second build is incremental.
$(VENV)/.installed/package: $(PACKAGE_SOURCES) requirements/build.txt requirements/runtime.txt
	@echo "Installing the Python package into $(VENV)"
	@CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) "$(BIN)/python" -m pip --disable-pip-version-check --no-input install --quiet \
	  --no-build-isolation --no-index --config-settings=build-dir=$(PYTHON_BUILD) \
	  --config-settings=cmake.define.AMCT_WERROR=$(WERROR) --config-settings=cmake.define.CMAKE_EXPORT_COMPILE_COMMANDS=ON \
	  --constraint "$(VENV)/.constraints.txt" .
	@touch "$@"

lint-format:
	@echo "== clang-format"
	@"$(BIN)/clang-format" --dry-run -Werror $(CPP_HEADERS) $(CPP_SOURCES)

lint-ruff:
	@echo "== ruff"
	@"$(BIN)/ruff" check $(PYTHON_FOLDERS)
	@"$(BIN)/ruff" format --check $(PYTHON_FOLDERS)

lint-mypy: # on the installed package, because the stub of the extension module is made by the build
	@echo "== mypy"
	@"$(BIN)/mypy" -p amct_pytorch

lint-tidy:
	@echo "== clang-tidy"
	@$(MAKE) -j$(JOBS) --keep-going --output-sync tidy-files
	@find "$${XDG_CACHE_HOME:-$$HOME/.cache}/amct-tidy" -type f -mtime +60 -delete

# A file that passed is not looked at again until it, a header or the checks change (nor checked, see tidy.py).
tidy-files: $(TIDY_STAMPS)

# GoogleTest: fixtures have protected members, and a test case is as long as its story. A test's data is small, and
# made wrong it ends the test program, as it should.
TIDY_TESTS := bugprone-empty-catch bugprone-implicit-widening-of-multiplication-result \
  bugprone-throwing-static-initialization bugprone-unchecked-optional-access cert-err58-cpp misc-const-correctness \
  misc-non-private-member-variables-in-classes modernize-avoid-c-arrays modernize-raw-string-literal \
  modernize-use-auto modernize-use-ranges modernize-use-string-view performance-faster-string-find performance-prefer-single-char-overloads \
  readability-container-data-pointer readability-convert-member-functions-to-static \
  readability-function-cognitive-complexity
# Highway: functions of each instruction set are looked up by name, and vectors go into plain arrays.
TIDY_KERNELS := misc-const-correctness misc-use-internal-linkage modernize-avoid-c-arrays \
  modernize-concat-nested-namespaces
# nanobind: NB_MODULE makes static functions, and its handles are changed through const.
TIDY_BINDINGS := misc-const-correctness misc-use-anonymous-namespace

comma := ,
# The static analyzer follows the paths through a function up to so many states: a tenth of its default, which took
# four fifths of the time of all checks.
TIDY_STATES := $(addprefix --extra-arg=,-Xclang -analyzer-config -Xclang max-nodes=20000)
without = --checks=$(subst $() $(),$(comma),$(addprefix -,$(1)))
build/tidy/tests/%.ok: TIDY_MORE = $(call without,$(TIDY_TESTS))
build/tidy/src/kernels/%.ok: TIDY_MORE = $(call without,$(TIDY_KERNELS))
build/tidy/python/%.ok: TIDY_MORE = $(call without,$(TIDY_BINDINGS))
build/tidy/python/%.ok: TIDY_BUILD = $(PYTHON_BUILD)
build/tidy/%.ok: TIDY_MORE =
build/tidy/%.ok: TIDY_BUILD = build/release
build/tidy/%.ok: % $(CPP_HEADERS) .clang-tidy requirements/lint.txt
	@"$(BIN)/python" scripts/tidy.py "$(BIN)/clang-tidy" $(TIDY_BUILD) "$<" $(TIDY_STATES) $(TIDY_MORE)
	@mkdir -p "$(@D)" && touch "$@"
