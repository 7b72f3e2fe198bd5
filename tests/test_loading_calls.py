"""No call in our sources loads a pickle or trusts a model's own code: read from the sources, not from a run."""

import ast
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("flows", "tasks", "infra") for path in (PROJECT / folder).rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LOADERS = {"torch.load", "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
MODEL_CLASSES = {"AutoModelForCausalLM", "AutoModelForSequenceClassification", "loader"}
AUTO_CLASSES = MODEL_CLASSES | {"AutoTokenizer", "AutoConfig"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str, str]:
    """Each keyword with its value; what is unpacked stands under its own name."""
    return {word.arg or f"**{ast.unparse(word.value)}": ast.unparse(word.value) for word in call.keywords}


def options(path: Path) -> Iterator[tuple[str, str]]:
    """Name and value of every keyword of a call, and of every entry of a dict that is written out."""
    for _, call in calls(path):
        yield from keywords(call).items()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant):
                    yield str(key.value), ast.unparse(value)


def modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_no_source_imports_an_unpickler() -> None:
    assert len(SOURCES) >= 130
    assert [path.name for path in SOURCES if modules(path) & UNPICKLERS] == []


def test_no_source_calls_a_loader_of_pickles() -> None:
    found = [(path.name, name) for path in SOURCES for name, _ in calls(path)]
    assert len(found) > 2000
    assert [(path, name) for path, name in found if name in LOADERS or name.endswith("read_pickle")] == []


def test_no_call_allows_pickles_or_a_models_own_code() -> None:
    due = {"allow_pickle": "False", "weights_only": "True", "trust_remote_code": "False", "use_safetensors": "True"}
    given = [(path.name, word, value) for path in SOURCES for word, value in options(path) if word in due]
    assert len(given) >= 3
    assert [one for one in given if one[2] != due[one[1]]] == []
    texts = [path.name for path in SOURCES if "trust_remote_code" in path.read_text()]
    assert texts == ["safe_loading.py"]


def test_every_model_is_loaded_under_the_options_that_forbid_both() -> None:
    loads = [
        (name.split(".")[0], keywords(call))
        for path in SOURCES
        for name, call in calls(path)
        if name.endswith(".from_pretrained") and name.split(".")[0] in AUTO_CLASSES
    ]
    assert len(loads) == 6
    assert [words for _, words in loads if "**options" not in words] == []
    assert [words for name, words in loads if name in MODEL_CLASSES and words.get("use_safetensors") != "True"] == []
