# Everything a developer runs. Environments are made once (stamp files); a second call is instant.
#   make demo ARGS='--seed 1'     the whole story, from nothing to a swing-up and a report
#   make test ARGS='-k table'     the tests, on the ROS 2 Kilted wheels; make test-jazzy on Jazzy's

PYTHON ?= python3
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
METADATA := setup.py setup.cfg pyproject.toml constraints.txt
# Torch comes first and by its exact version: a build of that version that is already at hand (such
# as the small one without CUDA) is then taken, and nothing later asks for another.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-jazzy lint types colcon clean

demo: .venv/installed
	.venv/bin/mbrl-ros demo $(ARGS)

# First a worker for each core, whole files in the order of their names; then one by one the tests
# whose nodes keep time. Status 5 of pytest: the part has none of the tests asked for.
SHARED := -n auto --dist loadfile --no-loadscope-reorder -m 'not ros'
define PYTEST
	OMP_NUM_THREADS=1 $(1) -m pytest $(SHARED) $(ARGS) || test $$? = 5
	$(1) -m pytest -m ros $(ARGS) || test $$? = 5
endef

test: .venv/installed
	$(call PYTEST,.venv/bin/python)

test-jazzy: .venv-jazzy/installed
	$(call PYTEST,.venv-jazzy/bin/python)

lint: .venv/installed
	.venv/bin/ruff check .

types: .venv/installed
	.venv/bin/mypy

# Editable, so that the tests see the checkout; `make colcon` tests what an install holds.
.venv/installed: $(METADATA) constraints-kilted.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) $(TORCH)
	.venv/bin/python $(PIP_INSTALL) -c constraints.txt -c constraints-kilted.txt \
	    -e '.[ros,cpu,openvino,train,test]'
	touch $@

.venv-jazzy/installed: $(METADATA) constraints-jazzy.txt
	test -x .venv-jazzy/bin/python || $(PYTHON) -m venv .venv-jazzy
	.venv-jazzy/bin/python $(PIP_INSTALL) $(TORCH)
	.venv-jazzy/bin/python $(PIP_INSTALL) -c constraints.txt -c constraints-jazzy.txt \
	    -e '.[ros,cpu,openvino,train,test]'
	touch $@

# An environment of its own: colcon holds setuptools back, and brings pytest plug-ins.
.venv-colcon/installed:
	test -x .venv-colcon/bin/python || $(PYTHON) -m venv .venv-colcon
	.venv-colcon/bin/python $(PIP_INSTALL) colcon-common-extensions==0.3.0
	touch $@

# Builds the package as a ROS workspace would, then runs what was installed, away from the checkout.
COLCON_INSTALL := $(CURDIR)/build/colcon/install/mbrl_ros
colcon: .venv/installed .venv-colcon/installed
	rm -rf build/colcon && mkdir -p build/colcon
	PATH='$(CURDIR)/.venv-colcon/bin':"$$PATH" colcon --log-base build/colcon/log build \
	    --base-paths . --packages-select mbrl_ros \
	    --build-base build/colcon/build --install-base build/colcon/install
	cd '$(COLCON_INSTALL)' && ls share/ament_index/resource_index/packages/mbrl_ros \
	    share/mbrl_ros/package.xml share/mbrl_ros/launch/demo.launch.py \
	    share/mbrl_ros/config/robots/cartpole.yaml share/mbrl_ros/models/cartpole/robot.xml \
	    lib/mbrl_ros/mbrl-ros lib/mbrl_ros/sim_robot lib/mbrl_ros/data_logger \
	    lib/mbrl_ros/mpc_controller
	cd build/colcon && . install/setup.sh && '$(CURDIR)/.venv/bin/python' \
	    '$(COLCON_INSTALL)/lib/mbrl_ros/mbrl-ros' --help
	cd build/colcon && . install/setup.sh && '$(CURDIR)/.venv/bin/python' -c \
	    "from mbrl_ros.core.paths import share_dir as s; assert str(s()).startswith('$(COLCON_INSTALL)'), s()"

clean:
	rm -rf .venv .venv-jazzy .venv-colcon .venv-mbrl-lib build install log out *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
