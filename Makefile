# Everything runs in virtual environments, which the first target that needs one makes and fills.

PYTHON ?= python3
VERSIONS ?= pinned
BROWSER ?= yes
SUITE ?= demo
MODEL := meta-llama/Llama-3.1-8B

CONSTRAINTS := bench/machine/versions/$(VERSIONS).txt
# One environment for each set of versions, and for each Python that is asked for.
VENV ?= .venv$(if $(filter-out pinned,$(VERSIONS)),-$(VERSIONS))$(if $(filter-out file,$(origin PYTHON)),-$(python-version))
python-version = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CUDA_VENV := .venv-cuda

$(if $(wildcard $(CONSTRAINTS)),,$(error VERSIONS=$(VERSIONS) is not a set of versions: use lowest, pinned or newest))
$(if $(filter yes no,$(BROWSER)),,$(error BROWSER=$(BROWSER): use yes or no))

.DEFAULT_GOAL := help
.PHONY: help demo test test-cuda lint format clean browser compiler

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "make test BROWSER=no           skip the tests in Chromium; else it is installed"
	@echo "make test VERSIONS=newest      test with the newest libraries, or the lowest"
	@echo "make demo PYTHON=python3.13    use another Python; also make test, make lint"

demo: $(INSTALLED) ## Estimate an 8B model, train small ones, report and check the results.
	@set -e; for gpu in 24GB 80GB; do for method in full lora qlora; do \
		echo "\$$ lorabench estimate $(MODEL) --method $$method --gpu $$gpu"; \
		$(BIN)/lorabench estimate $(MODEL) --method $$method --gpu $$gpu; echo; \
	done; done
	rm -rf demo-results report.html
	@echo "$(BIN)/lorabench run $(SUITE) -o demo-results --require-all"
	@$(BIN)/lorabench run $(SUITE) -o demo-results --require-all || \
		{ echo "The demo failed: the recipes above were not measured. Here lorabench is $(BIN)/lorabench." >&2; exit 1; }
	$(BIN)/lorabench report demo-results -o report.html
	$(BIN)/lorabench check demo-results --baseline demo-results
	@echo
	@echo "Wrote demo-results/ ($$(ls demo-results/*.record.json | wc -l) run records) and report.html:"
	@echo "open $(CURDIR)/report.html in a browser."

# With other versions than the pinned ones only those tests run that depend on them: the whole takes too long. What lints
# is pinned, since each version of it finds other faults.
ifeq ($(VERSIONS),pinned)
test: lint $(if $(filter yes,$(BROWSER)),browser) ## Run lint, types and all tests.
	$(BIN)/pytest -n auto --dist worksteal $(if $(filter no,$(BROWSER)),--no-browser)
else
test: $(INSTALLED)
	$(BIN)/pytest -n auto --dist worksteal -m versions
endif

# Where an index offers builds of torch without CUDA too, such as 2.13.0+cpu, === takes the one without a suffix. Tests of
# a file share a suite that took a minute, and so stay together.
test-cuda: compiler $(CUDA_VENV)/.installed ## Run the tests on a null GPU, with a CUDA build of torch (5 GB).
	$(CUDA_VENV)/bin/pytest -n auto --dist loadfile -m cuda_build

lint: $(INSTALLED) ## Run ruff and mypy.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code and fix what ruff can fix.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove everything that make has made.
	rm -rf .venv .venv-* dist demo-results report.html .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment that was only half filled is filled again, since the stamp is written last. The set is given as
# pip's setting and not by -c, so that no limit that this machine sets for pip contradicts it.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) > /dev/null || \
		{ echo "$(PYTHON) is not installed: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lorabench needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version): name another, such as make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null || \
		{ $(call apt,$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')) }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(CUDA_VENV)/.installed: pyproject.toml bench/machine/versions/pinned.txt
	$(PYTHON) -m venv $(CUDA_VENV)
	PIP_CONSTRAINT=bench/machine/versions/pinned.txt $(CUDA_VENV)/bin/pip install --quiet --disable-pip-version-check \
		torch===$$(sed -n 's/^torch==//p' bench/machine/versions/pinned.txt) -e '.[dev]'
	@touch $@

compiler:
	@command -v c++ > /dev/null || { $(call apt,g++) }

# The report is looked at in Chromium, or Chrome. Ubuntu names Chromium's packages otherwise than Debian.
browser:
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } > /dev/null && \
		command -v chromedriver > /dev/null || \
		{ $(call apt,$$(grep -q '^ID=ubuntu' /etc/os-release && echo chromium-browser chromium-chromedriver || echo chromium chromium-driver),make test BROWSER=no does without) }

# Installs Debian packages where that is allowed, and otherwise says which to install; the second argument is a way out.
apt = packages="$(1)"; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "Installing with apt-get: $$packages$(if $(2), ($(2)))"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $$packages > /dev/null; \
	else \
		echo "Not installed: $$packages. Install with: sudo apt-get install $$packages$(if $(2), ($(2)))" >&2; exit 1; \
	fi;
