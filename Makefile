# make demo, make test, make check, make test-browser, make docs, make walk, make bench. The first run makes .venv; later runs use it again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= We sort the bookshelf by color. Start with red.
.PHONY: demo test test-browser check docs walk install bench clean

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

# What the continuous integration runs, and the browser besides.
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

bench: $(VENV)/.demo $(VENV)/.dev benchmarks/.venv-peers/.installed
	$(BIN)/python -m benchmarks.run

# The peers the benchmarks compare with; nothing else needs them.
benchmarks/.venv-peers/.installed: benchmarks/requirements.txt
	test -x benchmarks/.venv-peers/bin/python || $(PYTHON) -m venv benchmarks/.venv-peers
	benchmarks/.venv-peers/bin/python -m pip install --quiet --requirement benchmarks/requirements.txt
	benchmarks/.venv-peers/bin/python -m pip install --quiet --no-deps steering-vectors==0.12.2
	touch $@

clean:
	rm -rf $(VENV) benchmarks/.venv-peers
