"""What the code never calls: whatever runs or builds what a file says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for folder in ("btm_core", "tasks", "flows", "benchmarks", "docker", ".ci")
    for path in (ROOT / folder).rglob("*.py")
]
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "jsonpickle"}
ACCEPTED = {
    (
        "btm_core/data/cifar.py",
        "pickle.Unpickler",
    ),  # its find_class knows arrays alone; after the md5
    ("btm_core/data/cifar.py", "pickle.UnpicklingError"),
    ("btm_core/importing/convert.py", "pickle.UnpicklingError"),  # caught
}


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` of a name or attribute, "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    prefix = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{prefix}.{node.attr}" if isinstance(node, ast.Attribute) and prefix else ""


def dangerous(source: str) -> Iterator[str]:
    """Yield what a source names or calls of the things that run what they read."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLING:
            yield f"from {node.module}"
        elif isinstance(node, ast.Import):
            yield from (f"{name.name} as {name.asname}" for name in node.names if name.name in PICKLING and name.asname)
            yield from (name.name for name in node.names if name.name in PICKLING - {"pickle"})
        elif isinstance(node, ast.Attribute) and dotted(node).partition(".")[0] in PICKLING:
            yield dotted(node)
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            last = name.rpartition(".")[2] or (node.func.attr if isinstance(node.func, ast.Attribute) else "")
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            wrong = (
                name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen")
                or last in ("read_pickle", "to_pickle", "unsafe_load", "full_load", "load_pickle")
                or (name == "torch.load" and given.get("weights_only") != "True")
                or given.get("allow_pickle", "False") != "False"
                or (name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False")
                or (name in ("yaml.load", "yaml.load_all") and "SafeLoader" not in ast.unparse(node))
                or given.get("shell", "False") != "False"
            )
            if wrong:
                yield name or last


def test_nothing_runs_or_builds_what_a_file_says() -> None:
    assert len(SOURCES) > 90
    found = {(str(path.relative_to(ROOT)), name) for path in SOURCES for name in dangerous(path.read_text())}
    assert found == ACCEPTED


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle\npickle.loads(b'')", "from pickle import loads", "import pickle as p", "import dill"),
        *("torch.load('a')", "torch.load('a', weights_only=False)", "np.load('a')", "np.load('a', allow_pickle=True)"),
        *("pd.read_pickle('a')", "frame().to_pickle('a')", "yaml.load(x)", "yaml.load(x, yaml.Loader)", "eval('1')"),
        *("exec('1')", "os.system('ls')", "subprocess.run('ls', shell=True)", "f(allow_pickle=flag)", "joblib.load(x)"),
        *("from cloudpickle import loads", "yaml.unsafe_load(x)", "yaml.full_load(x)"),
    ],
)
def test_the_search_finds(source: str) -> None:
    assert list(dangerous(source))


@pytest.mark.parametrize(
    "source",
    [
        *("model.eval()", "torch.load('a', weights_only=True)", "np.load('a', allow_pickle=False)", "re.compile('a')"),
        *("yaml.safe_load(x)", "yaml.load(x, Loader=yaml.SafeLoader)", "json.loads(x)", "subprocess.run(['ls'])"),
    ],
)
def test_the_search_leaves_alone(source: str) -> None:
    assert not list(dangerous(source))


def test_mlflows_switch_is_off_where_we_use_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION

    from btm_core.config import load_experiment
    from tasks.settings import runtime_settings
    from tasks.tracking import Tracker

    monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
    assert MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get() is True  # the reason for all this
    home = runtime_settings({"home": tmp_path, "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"})
    with Tracker(home, load_experiment("digits-lt"), "run"):
        assert MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get() is False
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")  # as it is set by whoever wants it
    with Tracker(home, load_experiment("digits-lt"), "run"):
        assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "true"
