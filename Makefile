# Two commands do everything: `make demo` and `make test`. Both set up .venv first if need be.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BARS ?= 1800000

PY = "$(VENV)/bin/python"
MOOLA = $(PY) -m moola_features
TRAIN = $(PY) -m moola_train
INSTALLED = $(VENV)/.installed

.PHONY: demo test lint bench gpu chart clean

demo: $(INSTALLED)
	mkdir -p "$(DEMO)"
	$(MOOLA) synth -o "$(DEMO)/bars.parquet" --bars $(BARS) --labels "$(DEMO)/labels.parquet"
	$(MOOLA) build "$(DEMO)/bars.parquet" -o "$(DEMO)/bars.zarr"
	$(MOOLA) verify "$(DEMO)/bars.zarr" --against "$(DEMO)/bars.parquet"
	$(MOOLA) show "$(DEMO)/bars.zarr" -o "$(DEMO)/chart.html"
	$(TRAIN) split --labels "$(DEMO)/labels.parquet" --store "$(DEMO)/bars.zarr" \
		-o "$(DEMO)/split.json"
	$(TRAIN) fit "$(DEMO)/bars.zarr" --labels "$(DEMO)/labels.parquet" \
		--split "$(DEMO)/split.json" --run-folder "$(DEMO)/run" --resume auto \
		--preset jade-span --epochs 15 --set optimiser.learning_rate=3e-3

test: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist loadfile
	NUMBA_DISABLE_JIT=1 HYPOTHESIS_PROFILE=nojit $(PY) -m pytest -m kernels tests

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Measures, then writes the tables into README.md.
bench: $(INSTALLED)
	$(PY) benchmarks/run.py

# Training steps, on a GPU where there is one; rewrites docs/gpu.md.
gpu: $(INSTALLED)
	$(PY) benchmarks/gpu.py

# The pictures in docs/ and README.md, from the sample that comes with the project.
chart: $(INSTALLED)
	mkdir -p "$(DEMO)"
	$(MOOLA) build data/sample.parquet -o "$(DEMO)/sample.zarr"
	$(MOOLA) show "$(DEMO)/sample.zarr" -o docs/chart.png --at "2020-01-16 03:20" --bars 240

# Debian splits ensurepip off its Python: there, the system's pip installs into the environment.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "moola needs Python 3.11 or newer; try make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv "$(VENV)" >/dev/null 2>&1 || $(PYTHON) -m venv --clear --without-pip "$(VENV)"
	if [ -x "$(VENV)/bin/pip" ]; then set -- $(PY) -m pip; \
	else set -- $(PYTHON) -m pip --python $(PY); fi; \
	"$$@" install --quiet --disable-pip-version-check -e '.[charts,train,tensorboard,mlflow,remote,dask,dev]' -c constraints.txt
	touch "$(INSTALLED)"

clean:
	rm -rf "$(VENV)" "$(DEMO)" build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
