"""The model's code as one Python file, for directories that load where this package is not installed.

The file holds what configuration, model and processor reach, definition by definition, and nothing else of the project:
transformers copies one file and imports it, and a second copy of a class in a second file would be another class.
"""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from phi3v_data.files import load_json, write_json
from phi3v_train.models.phi3v.processing_phi3_v import default_chat_template

PACKAGES = ("phi3v_train", "phi3v_data")
HOME = "phi3v_train.models.phi3v"
CODE_FILE = "modeling_phi3_v.py"

ENTRIES = (
    (f"{HOME}.configuration_phi3_v", "Phi3VConfig"),
    (f"{HOME}.modeling_phi3_v", "Phi3VForConditionalGeneration"),
    (f"{HOME}.image_processing_phi3_v", "Phi3VImageProcessor"),
    (f"{HOME}.tokenization_phi3_v", "Phi3VTokenizer"),
    (f"{HOME}.processing_phi3_v", "Phi3VProcessor"),
)

CONFIG = "modeling_phi3_v.Phi3VConfig"
MODEL = "modeling_phi3_v.Phi3VForConditionalGeneration"
IMAGES = "modeling_phi3_v.Phi3VImageProcessor"
TOKENIZER = [None, "modeling_phi3_v.Phi3VTokenizer"]
PROCESSOR = "modeling_phi3_v.Phi3VProcessor"

AUTO_MAPS: dict[str, dict[str, object]] = {
    "config.json": {"AutoConfig": CONFIG, "AutoModelForCausalLM": MODEL, "AutoModelForImageTextToText": MODEL},
    "preprocessor_config.json": {"AutoImageProcessor": IMAGES, "AutoProcessor": PROCESSOR},
    "processor_config.json": {"AutoProcessor": PROCESSOR},
    "tokenizer_config.json": {"AutoTokenizer": TOKENIZER, "AutoProcessor": PROCESSOR},
}
"""`auto_map` of each file of a model directory, in transformers' form."""

HEADER = '''"""Phi-3-vision on current transformers: configuration, model, image processor, tokenizer, processor.

Written by `phi3v-train merge --with_code` from the modules of the package phi3v (Apache License 2.0).
"""
'''


PLAIN_FILES = {
    "load_json": 'def load_json(path: Path) -> Any:\n    return json.loads(path.read_text(encoding="utf-8"))',
    "write_text": 'def write_text(path: Path, text: str) -> None:\n    path.write_bytes(text.encode("utf-8"))',
}
"""Functions of `phi3v_data.files` as the file has them: without locks, which Windows does not have."""


class BundleError(RuntimeError):
    """A module of the model has a form that cannot be put into one file."""


class Module:
    """A module's top-level definitions and imports, by name."""

    def __init__(self, name: str) -> None:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise BundleError(f"{name}: has no source file")
        source = Path(spec.origin).read_text(encoding="utf-8")
        self.name = name
        self.lines = source.splitlines()
        self.definitions: dict[str, ast.stmt] = {}
        self.project: dict[str, tuple[str, str]] = {}
        self.external: dict[str, str] = {}
        for statement in ast.parse(source).body:
            self._read(statement)

    def _read(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").split(".")[0] in PACKAGES:
            for alias in statement.names:
                if alias.asname not in (None, alias.name):
                    raise BundleError(f"{self.name}: imports {alias.name} under another name")
                self.project[alias.name] = (str(statement.module), alias.name)
        elif isinstance(statement, ast.ImportFrom | ast.Import):
            for alias in statement.names:
                name = alias.asname or alias.name.split(".")[0]
                if isinstance(statement, ast.Import):
                    self.external[name] = ast.unparse(ast.Import([alias]))
                else:
                    self.external[name] = ast.unparse(ast.ImportFrom(statement.module, [alias], statement.level))
        else:
            for name in bound_names(statement):
                self.definitions[name] = statement

    def text(self, statement: ast.stmt) -> str:
        """The statement's source, its decorators and comments included."""
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
        return "\n".join(self.lines[first - 1 : statement.end_lineno])


def bound_names(statement: ast.stmt) -> list[str]:
    """Names that a top-level statement defines; none for a docstring."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


class Bundle:
    """The definitions that the entries reach, in an order in which each can be executed."""

    def __init__(self, replaced: dict[str, str]) -> None:
        self.replaced = replaced
        self.modules: dict[str, Module] = {}
        self.homes: dict[str, str] = {}
        self.imports: set[str] = set()
        self.texts: list[str] = []
        self._under_way: set[tuple[str, int]] = set()

    def add(self, module_name: str, name: str) -> None:
        """Add a definition behind all that it names.

        Raises:
            BundleError: two modules define the name, or none does.
        """
        if module_name not in self.modules:
            self.modules[module_name] = Module(module_name)
        module = self.modules[module_name]
        if name in module.project:
            self.add(*module.project[name])
            return
        if name in module.external:
            self.imports.add(module.external[name])
            return
        if name not in module.definitions:
            raise BundleError(f"{module_name}: does not define {name}")
        if self.homes.setdefault(name, module_name) != module_name:
            raise BundleError(f"{module_name}: {name} is defined in {self.homes[name]}, too")
        statement = module.definitions[name]
        if (module_name, statement.lineno) in self._under_way:
            return
        self._under_way.add((module_name, statement.lineno))
        text = self.replaced.get(name)
        for used in used_names(statement if text is None else ast.parse(text)):
            if used in module.definitions or used in module.project or used in module.external:
                self.add(module_name, used)
        self.texts.append(module.text(statement) if text is None else text)

    def source(self) -> str:
        """The whole file."""
        imports = sorted(self.imports, key=lambda line: (not line.startswith("import "), line))
        return "\n".join([HEADER, *imports, "", "", "\n\n\n".join(self.texts), ""])


def used_names(tree: ast.AST) -> list[str]:
    """Names that a definition reads, in the order of its text."""
    return list(dict.fromkeys(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)))


@cache
def code_file() -> str:
    """Content of `modeling_phi3_v.py`: the model's classes without imports of this project."""
    template = f"def default_chat_template() -> str:\n    return {default_chat_template()!r}"
    bundle = Bundle({"default_chat_template": template, **PLAIN_FILES})
    for module, name in ENTRIES:
        bundle.add(module, name)
    # transformers asks the configuration where the model's class is; ours drops what it reads of `auto_map`.
    return bundle.source() + f"\n\nPhi3VConfig.auto_map = {AUTO_MAPS['config.json']!r}\n"


def write_code(folder: Path) -> None:
    """Put the code into a model directory, and the `auto_map` that names it into its settings."""
    (folder / CODE_FILE).write_text(code_file(), encoding="utf-8")
    for name, auto_map in AUTO_MAPS.items():
        path = folder / name
        if path.is_file():
            write_json(path, {**load_json(path), "auto_map": auto_map})
