# Everything runs in .venv, which the first target that needs it makes and fills.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODEL := meta-llama/Llama-3.1-8B

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean browser

help: ## Say what there is to make.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Estimate an 8B model, train small ones, report and check the results.
	@set -e; for gpu in 24GB 80GB; do for method in full lora qlora; do \
		echo "\$$ lorabench estimate $(MODEL) --method $$method --gpu $$gpu"; \
		$(BIN)/lorabench estimate $(MODEL) --method $$method --gpu $$gpu; echo; \
	done; done
	rm -rf demo-results report.html
	$(BIN)/lorabench run demo -o demo-results
	$(BIN)/lorabench report demo-results -o report.html
	$(BIN)/lorabench check demo-results --baseline demo-results
	@echo
	@echo "Wrote demo-results/ ($$(ls demo-results/*.record.json | wc -l) run records) and report.html:"
	@echo "open $(CURDIR)/report.html in a browser."

test: lint browser ## Run lint, types and all tests.
	$(BIN)/pytest -n auto --dist worksteal

lint: $(INSTALLED) ## Run ruff and mypy.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code and mend what ruff can mend.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove all that was made here.
	rm -rf $(VENV) dist demo-results report.html .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment that was only half filled is filled again, since the stamp is written last.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || \
		{ echo "$(PYTHON) is not installed: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lorabench needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version): name another, such as make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null || \
		{ $(call apt,$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')) }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The report is looked at in Chromium, or Chrome. Ubuntu names Chromium's packages otherwise than Debian.
browser:
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } > /dev/null && \
		command -v chromedriver > /dev/null || \
		{ $(call apt,$$(grep -q '^ID=ubuntu' /etc/os-release && echo chromium-browser chromium-chromedriver || echo chromium chromium-driver)) }

# Installs Debian packages where that is allowed, and otherwise says which to install.
apt = packages="$(1)"; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $$packages > /dev/null; \
	else \
		echo "Not installed: $$packages. Install with: sudo apt-get install $$packages" >&2; exit 1; \
	fi;
