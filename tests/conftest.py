"""What the whole session shares: one toy data set, one Ray cluster, a cache and a home of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared" / "data"

# Tests that take long, for a test, and need neither broker nor cluster: `make slow` writes them down.
SLOW = Path(__file__).with_name("slow.txt")
_SLOW_S = 0.5

# Words that tell of tests which share a broker, or kill what others may need; and of those that take long besides.
_TOGETHER = ("vhost", "Broker(", "kill_something")
_HEAVY = (*_TOGETHER, "mark.slow", "ray_cluster")
_KERNELS_S = 3 * 86400.0  # what isn't of the last days' sources won't be asked for again


@cache
def _has(path: str, words: tuple[str, ...]) -> bool:
    """Tell whether a file of tests has one of some words in it."""
    text = (Path(__file__).parents[1] / path).read_text(encoding="utf-8")
    return any(word in text for word in words)


def _is_heavy(nodeid: str) -> bool:
    return _has(nodeid.split("::", maxsplit=1)[0], _HEAVY)


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out what needs a broker, a cluster, or long")
    parser.addoption("--note-slow", action="store_true", help=f"write down what takes long, in {SLOW.name}")
    parser.addoption("--touch-when-light", type=Path, help="a file to touch once no broker, cluster, browser is needed")


def _function(nodeid: str) -> str:
    return nodeid.split("[", maxsplit=1)[0]


class _Notes:
    """Writes down which functions take long, for one of their parameters at least: what fixtures take is shared."""

    def __init__(self) -> None:
        self._took: dict[str, float] = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            name = _function(report.nodeid)
            self._took[name] = max(self._took.get(name, 0.0), report.duration)

    def pytest_sessionfinish(self):
        """Write down what is known now: of tests that were not run, what was known before."""
        known = dict.fromkeys(SLOW.read_text(encoding="utf-8").split(), _SLOW_S) | self._took
        there = [name for name, took in known.items() if took >= _SLOW_S and Path(name.split("::")[0]).exists()]
        light = sorted(name for name in there if not _is_heavy(name))
        SLOW.write_text("".join(f"{name}\n" for name in light), encoding="utf-8")


class _Lightness:
    """Tells whoever waits for it that what is left are tests which others may run beside."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heavy: set[str] = set()

    def pytest_xdist_node_collection_finished(self, ids):
        self._heavy = {nodeid for nodeid in ids if _is_heavy(nodeid)}

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown" and report.nodeid in self._heavy:
            self._heavy.remove(report.nodeid)
            if not self._heavy:
                self._path.touch()


def pytest_collection_modifyitems(config, items):
    """Begin with the files that take longest; a stable sort: within a file, the order is the file's."""
    heavy = {item: _is_heavy(item.nodeid) for item in items}
    if config.getoption("quick"):
        slow = set(SLOW.read_text(encoding="utf-8").split())
        out = {item for item in items if heavy[item] or _function(item.nodeid) in slow}
        config.hook.pytest_deselected(items=[item for item in items if item in out])
        items[:] = [item for item in items if item not in out]
    items.sort(key=lambda item: not heavy[item])


def pytest_xdist_make_scheduler(config, log):
    """Let one of pytest-xdist's workers do all that kills or needs a broker, one after the other, beside the rest.

    What kills and waits for processes would fall over others that do so at the same time (on two cores it did), and one
    worker's cluster and broker serve all. Each of the other files stays together. (Marks of groups get lost with pytest
    9.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class InGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return "together" if _has(file, _TOGETHER) else file

    return InGroups(config, log)


def _kernels(config) -> Path:
    """Find a folder for compiled kernels that stays from run to run: which sources they are of is in their names."""
    folder = config.cache.mkdir("kernels")
    for version in folder.iterdir():
        if time.time() - version.stat().st_mtime > _KERNELS_S:
            shutil.rmtree(version, ignore_errors=True)
    return folder


def pytest_configure(config):
    """Keep caches and environment of the user out of the tests, and the tests out of them.

    Before any module is imported: the folder for compiled code is chosen then. pytest-xdist's workers have that of who
    starts them.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        if config.getoption("note_slow"):
            config.pluginmanager.register(_Notes())
        if light := config.getoption("touch_when_light"):
            config.pluginmanager.register(_Lightness(light))
        os.environ["HZZRAY_CACHE"] = tempfile.mkdtemp(prefix="hzzray-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ["HZZRAY_CACHE"], ignore_errors=True))
        (Path(os.environ["HZZRAY_CACHE"]) / "numba").symlink_to(_kernels(config))
    for name in ("HZZRAY_CATALOGUE", "HZZRAY_RUNS", "HZZRAY_ENVIRONMENT", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    for name in [name for name in os.environ if name.startswith("HZZRAY_BROKER")]:
        del os.environ[name]
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["HZZRAY_DASHBOARD"] = "none"  # few tests look at one, which takes seconds of CPU
    os.environ["REPORTER_UPDATE_INTERVAL_MS"] = "60000"  # what dashboards' agents look at all processes for
    # What hangs gets five seconds to end by itself else; the name is Ray's.
    os.environ["RAY_kill_worker_timeout_milliseconds"] = "1000"  # noqa: SIM112


@pytest.fixture(scope="session")
def toys(compiled, tmp_path_factory) -> Path:
    """Toy files of the toy release, 20 000 simulated events; who reads them needs compiled kernels too."""
    from hzzray.data.catalogue import release
    from hzzray.data.toy import write_toys

    folder = tmp_path_factory.mktemp("toys")
    write_toys(folder, release("toy"), events=20_000, seed=3)
    return folder


@pytest.fixture(scope="session")
def compiled():
    """Compiled kernels in the cache of all: pytest-xdist's workers begin at opposite ends, and meet."""
    from hzzray import analyses

    analyses.warm_up(last_first=os.environ.get("PYTEST_XDIST_WORKER") == "gw1")


@pytest.fixture(scope="session")
def ray_cluster(compiled):
    """One local Ray cluster with three slots."""
    from hzzray.engine.cluster import cluster

    with cluster(3):
        yield


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """A real RabbitMQ node of our own, one for all tests: each takes a ``vhost``. Whoever kills it starts it again."""
    from tests.support import rabbit

    if not rabbit.is_installed() and "CI" not in os.environ:
        pytest.skip("no RabbitMQ here: apt-get install rabbitmq-server, or make test")
    node = rabbit.Broker(tmp_path_factory.mktemp("rabbit"))
    try:
        yield node.start()
    finally:
        node.kill()  # its folder is thrown away: no need for the seconds that a stop in good order takes
        node.stop()


@pytest.fixture
def vhost(broker):
    """A fresh virtual host of the session's broker: nothing is declared in it."""
    mine = broker.new_vhost()
    yield mine
    mine.delete()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real files, where it is there."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data with real ATLAS files beside the checkout")
    return SHARED


@pytest.fixture
def cli(monkeypatch, capsys):
    """Call the command line in this process; returns (exit code, standard output, standard error)."""
    from hzzray import cli as module

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["hzzray", *map(str, args)])
        code = 0
        try:
            module.main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
