# The build interface: short rules; the logic is in scripts/. `make help` lists the targets.

.DEFAULT_GOAL := all
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# What the user says is taken letter by letter ($ is no variable of make's; $$ is a $ too, as make has it), and reaches the shell through the
# environment alone, so that no character is special there either.
override MODELS := $(subst $$$$,$$,$(value MODELS))
override BASELINE := $(subst $$$$,$$,$(value BASELINE))
override SKIP_STEPS := $(subst $$$$,$$,$(value SKIP_STEPS))
override PROCESSES := $(value PROCESSES)
override SET := $(subst $$$$,$$,$(value SET))
override FRAGMENTS := $(subst $$$$,$$,$(value FRAGMENTS))
override FROM := $(subst $$$$,$$,$(value FROM))
override RERUN := $(value RERUN)
override SCORE := $(subst $$$$,$$,$(value SCORE))
override SUBMIT := $(subst $$$$,$$,$(value SUBMIT))
override EXPORT := $(subst $$$$,$$,$(value EXPORT))
override LATENTS := $(subst $$$$,$$,$(value LATENTS))
override PYTHON := $(value PYTHON)
override V := $(value V)
override DRY_RUN := $(value DRY_RUN)
export MODELS BASELINE SKIP_STEPS PROCESSES SCORE EXPORT LATENTS SUBMIT SET FRAGMENTS FROM RERUN
ifdef O
  override O := $(subst $$$$,$$,$(value O))
  export O
endif
ifdef KCONFIG_CONFIG
  override KCONFIG_CONFIG := $(subst $$$$,$$,$(value KCONFIG_CONFIG))
  export KCONFIG_CONFIG
endif

# A misspelt variable would be ignored, and the command would do something else than was asked for.
OURS := MODELS BASELINE SKIP_STEPS PROCESSES SCORE EXPORT LATENTS SUBMIT SET FRAGMENTS FROM RERUN SECTIONS SOURCES TESTS SAMPLE SEED MOST MUTANTS \
	O KCONFIG_CONFIG PYTHON V DRY_RUN
THEIRS := SHELL MAKEFLAGS MFLAGS CC CFLAGS LANG LC_% TMPDIR PATH HOME TERM OMP_% MKL_% GOMP_% WANDB_% HF_% CUDA_% NCCL_% TORCH_% \
	PYTORCH_% PYTHON% TRANSFORMERS_% XDG_% MPL% VIRTUAL_ENV
SAID := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
UNKNOWN := $(filter-out $(OURS) $(THEIRS),$(SAID))
ifneq "$(UNKNOWN)" ""
  $(error no variable $(firstword $(UNKNOWN)): `make help` lists them; an option of the menus goes into SET="KNLP_…=…")
endif
export PYTHONPATH := $(CURDIR)/lib$(if $(value PYTHONPATH),:$(value PYTHONPATH))
# The modules of this directory are what is run.
unexport PYTHONSAFEPATH

Q := $(if $(filter 1 y yes,$(V)),,@)
FLAGS := $(if $(filter 1 y yes,$(V)),--verbose) $(if $(filter-out 0 n no off false,$(DRY_RUN)),--dry-run)
ONCE = --models="$$MODELS" --baseline="$$BASELINE" --skip-steps="$$SKIP_STEPS"
SETS = --set="$$SET" --rerun="$$RERUN"
CHOSEN = $(ONCE) --processes="$$PROCESSES"
DEFCONFIGS := $(sort $(notdir $(filter-out %~,$(wildcard defconfigs/* */defconfigs/*))))

# PYTHON= and an active virtual environment are used as they are; otherwise .venv is made, once for its requirements.
ifdef PYTHON
  USED := $(PYTHON)
else ifdef VIRTUAL_ENV
  ifneq "$(value VIRTUAL_ENV)" "$(CURDIR)/.venv"
    USED := $(value VIRTUAL_ENV)/bin/python
  endif
endif
ifdef USED
  READY := ready
  READY_DEV := ready-dev
else
  READY := .venv/.ready
  READY_DEV := .venv/.ready-dev
endif
export MECHINT_PYTHON := $(or $(USED),.venv/bin/python)
export MECHINT_ANY_PYTHON := $(or $(USED),$(wildcard .venv/bin/python),python3)
PY := $$MECHINT_PYTHON
KCONFIG = "$(PY)" -m scripts.kconfig

.PHONY: all train mechint report submit export latents menuconfig oldconfig olddefconfig defconfig savedefconfig list-defconfigs \
	mergeconfig diffconfig listnewconfig allyesconfig allnoconfig lint ruff check check-all check-exhaustive mutants bench docs interchange ground-truth clean mrproper help ready ready-dev $(DEFCONFIGS:%=defconfig-%)

all: $(READY)
	$(Q)$(KCONFIG) run default $(CHOSEN) $(SETS) $(FLAGS)

train mechint report: $(READY)
	$(Q)$(KCONFIG) run $@ $(CHOSEN) $(SETS) $(FLAGS)

submit: $(READY)
	$(Q)$(KCONFIG) submit $(CHOSEN) $(SETS) $(FLAGS) --options="$$SUBMIT"

export: $(READY)
	$(Q)$(KCONFIG) export --options="$$EXPORT"

latents: $(READY)
	$(Q)$(KCONFIG) latents --options="$$LATENTS"

menuconfig oldconfig olddefconfig savedefconfig listnewconfig allyesconfig allnoconfig: $(READY)
	$(Q)$(KCONFIG) $@

defconfig: $(READY)
	$(Q)$(KCONFIG) defconfig $(ONCE) $(SETS) --fragments="$$FRAGMENTS"

mergeconfig: $(READY)
	$(Q)$(KCONFIG) mergeconfig --fragments="$$FRAGMENTS"

diffconfig: $(READY)
	$(Q)$(KCONFIG) diffconfig --from="$$FROM"

$(DEFCONFIGS:%=defconfig-%): defconfig-%: $(READY)
	$(Q)$(KCONFIG) defconfig $* $(ONCE) $(SETS) --fragments="$$FRAGMENTS"

# A name that is none fails before anything is installed; others than those above are of plug-ins.
defconfig-%:
	$(Q)"$$MECHINT_ANY_PYTHON" -m scripts.kconfig.defconfigs '$(subst ','\'',$*)'
	$(Q)$(KCONFIG) defconfig '$(subst ','\'',$*)' $(ONCE) $(SETS) --fragments="$$FRAGMENTS"

list-defconfigs:
	$(Q)"$$MECHINT_ANY_PYTHON" -m scripts.kconfig.defconfigs

lint: ruff
	$(Q)"$(PY)" -m mypy lib scripts

ruff: $(READY_DEV)
	$(Q)"$(PY)" -m ruff check .
	$(Q)"$(PY)" -m ruff format --check .

# Each ends with how many tests passed; mypy runs beside the tests, and what it says stands below them where it fails. Bytecode is kept whatever
# PYTHONDONTWRITEBYTECODE says: each process would take half a minute to compile pytest's form of all test files again.
PYTEST := pytest -q -n auto --maxprocesses 8
TESTED := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 "$(PY)" -m
check: ruff
	$(Q)$(TESTED) scripts.beside mypy lib scripts -- $(PYTEST) --dist loadfile -m "not slow and not exhaustive" --hypothesis-profile=quick

check-all: ruff
	$(Q)$(TESTED) scripts.beside mypy lib scripts -- $(PYTEST) --dist loadfile -m "not exhaustive"

check-exhaustive: $(READY_DEV)
	$(Q)$(TESTED) $(PYTEST) -m exhaustive

mutants: $(READY_DEV)
	$(Q)"$(PY)" -m scripts.mutants $${SOURCES:+--sources $$SOURCES} $${TESTS:+--tests $$TESTS} $${SAMPLE:+--sample $$SAMPLE} $${SEED:+--seed $$SEED} \
		$${PROCESSES:+--processes $$PROCESSES} $${MOST:+--most $$MOST} $$MUTANTS

# SAELens and the newest TransformerLens do not go together, so dictionaries have peers in an environment of their own.
ALL_SECTIONS := scan model families gpt2 cache sweep trace units attention mask kept temporal curves threads gpu sae
override SECTIONS := $(or $(value SECTIONS),$(ALL_SECTIONS))
ifneq "$(filter-out $(ALL_SECTIONS),$(SECTIONS))" ""
bench:
	@echo "error: SECTIONS= names what is no section; choose from $(ALL_SECTIONS)" >&2; exit 2
else
bench: $(if $(filter-out sae,$(SECTIONS)),.venv-bench/.ready) $(if $(filter sae,$(SECTIONS)),.venv-bench-sae/.ready)
	$(if $(filter-out sae,$(SECTIONS)),$(Q).venv-bench/bin/python -m benchmarks $(filter-out sae,$(SECTIONS)))
	$(if $(filter sae,$(SECTIONS)),$(Q).venv-bench-sae/bin/python -m benchmarks sae)
endif

docs: .venv-docs/.ready
	$(Q)NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict --quiet
	@echo "output/docs/index.html"

ground-truth: $(READY)
	$(Q)$(KCONFIG) score $(CHOSEN) $(FLAGS) --options="$$SCORE"

# Dictionaries of ours loaded by the libraries they are saved for, each in an environment of its own.
PEERS := saelens dictionary_learning sparsify
interchange: $(READY) $(PEERS:%=interchange-%)
interchange-%: .venv-peer-%/.ready $(READY)
	$(Q)rm -rf "output/interchange/$*"
	$(Q)"$(PY)" -m tests.golden.sae.ours $* "output/interchange/$*"
	$(Q).venv-peer-$*/bin/python tests/golden/sae/peers.py judge $* "output/interchange/$*"

# nnsight, which the peers need, asks for torchvision, whose builds fit one build of torch alone; no dictionary needs it.
.venv-peer-%/.ready: tests/golden/sae/requirements-%.txt
	$(Q)python3 scripts/kconfig/environment.py make "$(@D)" "$@" "$<"
	$(Q)"$(@D)/bin/python" -m pip uninstall -q -y torchvision 2>/dev/null
.PRECIOUS: .venv-peer-%/.ready

.venv-bench/.ready: requirements-bench.txt requirements.txt
	$(Q)python3 scripts/kconfig/environment.py make .venv-bench $@ $<

.venv-docs/.ready: requirements-docs.txt
	$(Q)python3 scripts/kconfig/environment.py make .venv-docs $@ $<

.venv-bench-sae/.ready: requirements-bench-sae.txt requirements.txt
	$(Q)python3 scripts/kconfig/environment.py make .venv-bench-sae $@ $<
	$(Q).venv-bench-sae/bin/python -m pip uninstall -q -y torchvision 2>/dev/null

.venv/.ready: requirements.txt
	$(Q)python3 scripts/kconfig/environment.py make .venv $@ $<

.venv/.ready-dev: requirements-dev.txt .venv/.ready
	$(Q)python3 scripts/kconfig/environment.py make .venv $@ $<

ready:
	$(Q)"$(PY)" scripts/kconfig/environment.py check requirements.txt

ready-dev:
	$(Q)"$(PY)" scripts/kconfig/environment.py check requirements.txt requirements-dev.txt

clean:
	$(Q)find . \( -path ./.venv -o -path './.venv-*' -o -path ./output -o -path ./.git \) -prune -o -name __pycache__ -prune -exec rm -rf {} +
	$(Q)rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

mrproper: clean
	$(Q)rm -f "$${O:-.}/.config" "$${O:-.}/.config.old" "$${O:-.}/defconfig"
	$(Q)rm -rf .venv .venv-bench .venv-bench-sae .venv-docs .venv-peer-*

define HELP
Run
  mechint            train when the configuration trains, then analyse and report
  train              train only
  report             draw and report finished analyses again, without a search
  submit             analyse as jobs of one checkpoint and one analysis, here or on Slurm, and compare; SUBMIT= says how
  export             write the numbers of finished analyses as CSV, Parquet or LaTeX into mechint_export/
  latents            features of dictionaries for other programs, contexts to explain, scores of explanations; LATENTS= says which
  all                what plain `make` does: train when the configuration trains, else analyse

Configure (.config)
  defconfig          the default experiment
  defconfig-NAME     a named experiment
  list-defconfigs    the names
  menuconfig         change .config in menus
  oldconfig          ask for what .config does not set
  olddefconfig       set what .config does not set to its default
  mergeconfig        set the lines of FRAGMENTS="file experiment …" in .config, each over those before it
  diffconfig         print what .config changes of .config.old, or of FROM=FILE or FROM=EXPERIMENT
  savedefconfig      write what differs from the defaults to ./defconfig
  listnewconfig      list what .config does not set
  allyesconfig       everything on
  allnoconfig        everything off

Develop
  lint               ruff's rules and format, and mypy's types
  ruff               the first two alone
  check              lint, and every test that is quick: 7 minutes
  check-all          lint, and all tests but the exhaustive ones: what continuous integration runs
  check-exhaustive   whole fuzzers, sanitizers and long simulations: an hour or so
  mutants            change one line of the library at a time; a test must notice each. SOURCES= SAMPLE= SEED= choose
  bench              speed beside peers, in .venv-bench; SECTIONS="scan sweep" chooses
  docs               the documentation as a site, output/docs/index.html, made in .venv-docs
  interchange        sparse autoencoders of ours loaded by SAELens, dictionary_learning and sparsify, in .venv-peer-*
  ground-truth       every method's score on models whose circuit is known; output/ground_truth/scorecard.html
  clean              remove caches
  mrproper           clean, and remove .config and the environments; results stay
  help               this text

Variables, which last for one command: only the defconfig targets write MODELS=, BASELINE=, SKIP_STEPS= and SET= to .config
  MODELS=PATH        what to analyse, on defconfig, defconfig-NAME, mechint or report: a checkpoint, a glob, a directory
                     of checkpoints, a model directory, a hub id, or a finished analysis to draw again
  BASELINE=PATH      what to compare with, on the same targets and on train: a finished analysis, or a training run
  SET="KNLP_MECHINT_SEED=1 KNLP_TASK_NAME=recall"   options of the menus, on defconfig, defconfig-NAME, train, mechint or report
  RERUN=1            repeat finished analyses, on mechint
  FRAGMENTS="a b"    files of CONFIG_ lines, or experiments, that are set over an experiment, on defconfig, defconfig-NAME
                     or mergeconfig
  O=DIR              where .config, and every relative path of a configuration, lies; KCONFIG_CONFIG=FILE is another .config
  SKIP_STEPS="8 9"   steps that a study leaves out, on defconfig, defconfig-NAME or mechint
  SCORE="--models gpt2 --seeds 2 --output-dir output/card_gpt2"   what ground-truth scores, and where that goes, since no
                     finished card is overwritten without --rerun; SCORE=--help lists all
  SUBMIT="--submit-executor slurm --submit-minutes 60"   where submit runs jobs, and what each may use; SUBMIT=--help lists all
  EXPORT="--tables metrics --formats 'csv latex'"   what export writes, instead of all tables as CSV; EXPORT=--help lists all
  LATENTS="dashboards --names '*-k32-*'"   work, run and options of latents; LATENTS=--help lists all
  PROCESSES=2        mechint and ground-truth in as many processes: checkpoints, or models and seeds, are dealt
                     out among them; of one checkpoint, sparse autoencoders are trained by all, each on its part
                     of every batch
  DRY_RUN=1          say what would run, and run nothing (1, y, yes or true; 0, n, no, off or false run it)
  V=1                show commands
  PYTHON=PATH        use this Python as it is; an active virtual environment is used too; otherwise .venv is made
endef

help:
	@:$(info $(HELP))
