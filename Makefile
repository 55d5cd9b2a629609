.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
PLUGINS := -p pytest_timeout -p _hypothesis_pytestplugin
TOUCHING := tests/test_main_path.py tests/training/project/test_check.py tests/ledger/test_ledger.py tests/ledger/test_storage.py \
	tests/search/test_proposals.py tests/tracking/test_tracking.py tests/tracking/test_delivery.py \
	tests/tracking/test_models_in_mlflow.py tests/training/test_exports.py tests/training/plain/test_single.py
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

run: $(VENV)/run ## Install into .venv and run a search of 50 trials
	$(BIN)/sweep run --trials 50

test: $(VENV)/test ## Install the test extra and run the tests, some side by side
	$(PYTEST)

coverage: $(VENV)/test ## The same with a list of lines that no test runs; takes half as long again
	$(PYTEST) --cov=sweep --cov-report=term-missing:skip-covered

test-lowest: .venv-lowest/test ## The tests that touch other libraries, with the lowest versions allowed
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 .venv-lowest/bin/python -m pytest $(PLUGINS) $(TOUCHING)

test-newest: .venv-newest/test ## The same with the newest versions
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 .venv-newest/bin/python -m pytest $(PLUGINS) $(TOUCHING)

lint: $(VENV)/test ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/run ## Run the benchmarks (an hour, three with MNIST; results on the screen)
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/bare_step.py
	$(BIN)/python benchmarks/bookkeeping.py
	$(BIN)/python benchmarks/tracking_cost.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/crowd.py
	$(BIN)/python benchmarks/cluster.py
	[ -z "$$SWEEP_TEST_MNIST" ] || $(BIN)/python benchmarks/own_module.py --mnist "$$SWEEP_TEST_MNIST"
	[ -z "$$SWEEP_TEST_MNIST" ] || $(BIN)/python benchmarks/memory.py --mnist "$$SWEEP_TEST_MNIST"
	[ -z "$$SWEEP_TEST_MNIST" ] || $(BIN)/python benchmarks/populations.py --mnist "$$SWEEP_TEST_MNIST"

soak: $(VENV)/test ## Kill searches at 200 random instants and fault every write (a night)
	$(BIN)/python tests/faults/harness.py --kills 100 --population auto
	$(BIN)/python tests/faults/harness.py --kills 100 --population 1
	$(BIN)/python tests/faults/harness.py --kills 100 --population mixed
	$(BIN)/python tests/faults/harness.py --kills 50 --population auto --epochs 60 --signals
	$(BIN)/python tests/faults/harness.py --kills 50 --population 1 --epochs 60 --signals
	$(BIN)/python tests/faults/own_projects.py
	$(BIN)/python tests/faults/cluster.py
	$(BIN)/python tests/faults/same_everywhere.py
	$(BIN)/python tests/faults/many_stores.py
	$(BIN)/python tests/faults/every_write.py --every --jobs 2 --results every-write.jsonl
	rm every-write.jsonl  # it lets a soak that was broken off go on
	$(BIN)/python tests/faults/every_write.py --sample 40 --side driver worker --fault kill

docs: $(VENV)/test ## Make docs/cli.md anew from the commands' help
	$(BIN)/python docs/make_cli.py

pictures: $(VENV)/test ## Take the pictures of the README anew (needs chromium and chromedriver)
	$(BIN)/python docs/make_pictures.py

constraints: ## Write down the versions of .venv as constraints.txt
	@head -2 constraints.txt > .constraints.new
	@$(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(sweep|editables|setuptools|pip)\b' \
		| sed 's/+cpu//' >> .constraints.new
	@mv .constraints.new constraints.txt

clean: ## Remove .venv and caches; results stay
	rm -rf $(VENV) .venv-lowest .venv-newest .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/run

# Packages of .venv, and beside them, first on the path, those whose versions differ.
.venv-%/test: pyproject.toml .ci/versions.py $(VENV)/test
	$(BIN)/python -m venv --clear --without-pip .venv-$*
	echo "import site; site.addsitedir('$$($(BIN)/python -c \
		'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> $$(.venv-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	$(BIN)/python .ci/versions.py $* > .venv-$*/requirements.txt
	$(BIN)/python -m pip --python .venv-$*/bin/python install --quiet --disable-pip-version-check \
		--no-compile --upgrade -r .venv-$*/requirements.txt
	@touch $@

.PHONY: help run test test-lowest test-newest coverage lint format bench soak docs pictures constraints clean
