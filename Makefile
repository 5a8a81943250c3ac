# `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest -q -n 2
DEMO := demo_out

.PHONY: help demo test test-slow test-gpu lint format docs schemas floors dist mutants clean

help:
	@echo "make demo       install (1.6 GB), convert the mini set in examples/data, validate it, train a tiny model on it"
	@echo "make test       install, run all tests except the slow and the gpu ones"
	@echo "make test-slow  run the slow tests (many kills, a million rows, Ray, DeepSpeed)"
	@echo "make test-gpu   run the tests and the checks that need a CUDA GPU of 80 GB or more (docs/hardware.md)"
	@echo "make lint       ruff check, ruff format --check, mypy"
	@echo "make docs       update the generated pages and JSON Schemas"
	@echo "make dist       build wheel and sdist, install the wheel and test it"
	@echo "make floors     run the quick tests with the oldest supported versions of the light packages"
	@echo "make mutants FILE=...  change a module one line at a time and list the changes that no test detects"
	@echo "make clean      remove the virtual environment, the output of the demo and build files"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One marker per set of extras: pip runs again only if the project file or the pins change.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing phi3v with the extras video and train into $(VENV): 1.6 GB with a CPU build of torch, several GB more"
	@echo "with a CUDA build; takes one to five minutes, once"
	$(PIP_INSTALL) -e '.[video,train]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[all,dev]'
	@touch $@

# DeepSpeed's kernels are not compiled: a CPU run only needs its Python code.
$(VENV)/.slow: pyproject.toml constraints.txt | $(BIN)/python
	DS_BUILD_OPS=0 $(PIP_INSTALL) -e '.[all,dev,deepspeed]'
	@touch $@

demo: $(VENV)/.demo
	@echo "convert, validate, train, kill, resume, evaluate and merge: about two minutes on two idle cores"
	$(BIN)/phi3v-data convert ucf101 --source examples/data/UCF101_subset --out_dir $(DEMO)/ucf101 \
		--origin "Big Buck Bunny, (c) Blender Foundation, https://www.bigbuckbunny.org" --license cc-by-3.0
	$(BIN)/phi3v-data validate $(DEMO)/ucf101 --html $(DEMO)/report.html
	$(BIN)/python examples/train_demo.py $(DEMO)

test: $(VENV)/.dev
	$(PYTEST) -m "not slow and not gpu"

# A module's tests run in one process, as what they share takes minutes to make.
test-slow: $(VENV)/.slow
	$(PYTEST) --dist loadscope -m "slow and not gpu"

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m gpu
	PYTHON=$(BIN)/python bash benchmarks/gpu.sh $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs schemas: $(VENV)/.dev
	$(BIN)/phi3v-data schema --out_dir schemas
	$(BIN)/phi3v-train schema --out_dir schemas
	$(BIN)/phi3v-data explain --markdown > docs/.problems.md.tmp && mv docs/.problems.md.tmp docs/problems.md
	$(BIN)/python benchmarks/hardware_page.py

# The oldest versions of the light packages allowed by pyproject.toml, without parquet and torch. Left out: tests that need
# these, and those of kills, slices, pages and wording, which take a third of the time and depend on no version.
NOT_ON_FLOORS := models train converters serving real report/test_html.py sets/test_kill.py test_convert_kill.py \
	test_slices.py test_engine.py test_hostile_directories.py test_file_systems.py test_imports.py test_words.py
$(VENV)-floors/.installed: pyproject.toml .ci/floors.py
	$(PYTHON) -m venv $(VENV)-floors
	$(VENV)-floors/bin/python .ci/floors.py > $(VENV)-floors/floors.txt
	$(VENV)-floors/bin/python -m pip install --quiet --disable-pip-version-check -c $(VENV)-floors/floors.txt -e '.[video]' pytest pytest-xdist hypothesis psutil
	@touch $@

floors: $(VENV)-floors/.installed
	$(VENV)-floors/bin/python -m pytest -q -n 2 -m "not slow and not gpu" tests $(NOT_ON_FLOORS:%=--ignore tests/%)

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(ls dist/*.whl)[video]"
	cd dist && "$(abspath $(VENV))-wheel/bin/phi3v-data" --version
	rm -rf dist/try && $(VENV)-wheel/bin/phi3v-data convert ucf101 --source examples/data/UCF101_subset --out_dir dist/try --limit 1
	$(VENV)-wheel/bin/phi3v-data validate dist/try
	rm -rf dist/try

# Takes twice the time of the test suite; NUMBER changes to FILE, or to all modules if FILE is not given.
NUMBER ?= 40
mutants: $(VENV)/.dev
	$(BIN)/python benchmarks/mutants.py map
	$(BIN)/python benchmarks/mutants.py run $(FILE) --number $(NUMBER)

clean:
	rm -rf $(VENV) $(VENV)-floors $(VENV)-wheel $(DEMO) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
