"""The options of prepare_data: where records come from, what their columns are called, what is held out."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.config import Config

Kind = Literal["sft", "preferences", "prompts", "ptx"]
KINDS: tuple[Kind, ...] = ("sft", "preferences", "prompts", "ptx")
PYTHON_PREFIX = "python:"
SOURCE_COLUMN = "source"

FIELDS: dict[Kind, set[str]] = {
    "sft": {"prompt", "completion", "messages"},
    "preferences": {"prompt", "chosen", "rejected"},
    "prompts": {"prompt"},
    "ptx": {"prompt", "completion", "messages", "text"},
}


class SourceConfig(Config):
    """One source of records: files, a hub data set, or a Python generator."""

    path: str = Field(min_length=1)
    """A local file or folder, s3://bucket/key, a hub name (hf://org/name), or python:module:function, a callable that
    yields records as dicts. Files end in .json, .jsonl, .csv or .parquet."""
    name: str | None = Field(None, pattern=r"^[\w.-]+$")
    """Of the data set: in the report, in the column `source` of prompts and ptx, and in proportions. Letters, digits
    and `_.-`; None: the last part of path without its ending."""
    test_path: str | None = Field(None, min_length=1)
    """Records to hold out, in the same forms as path. Without it a share of path is held out."""
    split: str | None = None
    """Split of a folder or hub data set to read; 'train' if not given."""
    subset: str | None = None
    """Configuration of a hub data set that has several."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column -> the source's, e.g. {prompt: question}. Columns of the same name need no entry."""
    separator: str = " "
    """Put between a plain prompt and its completion when no white space stands there. It becomes the start of the
    completion."""
    max_records: int | None = Field(None, ge=1)
    """Read only this many records of path and of test_path, from the start; None = all."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of a python: source."""

    @property
    def is_python(self) -> bool:
        """True for a python:module:function source."""
        return self.path.startswith(PYTHON_PREFIX)

    @property
    def data_set(self) -> str:
        """The name of its data set, given or taken from its path."""
        return self.name or _last_part(self.path)

    @model_validator(mode="after")
    def _check(self) -> Self:
        files_only = {"test_path": self.test_path, "split": self.split, "subset": self.subset}
        given = [name for name, value in files_only.items() if value is not None]
        if self.is_python and given:
            raise ValueError(f"{', '.join(given)} cannot be used with the python: source {self.path}; remove it.")
        if self.is_python and len(self.path.split(":")) != 3:
            raise ValueError(f"{self.path} does not name a callable; write python:package.module:function.")
        if self.arguments and not self.is_python:
            raise ValueError(f"arguments are for python: sources, but path is {self.path}; remove them.")
        return self


OneOrMore = SourceConfig | Annotated[list[SourceConfig], Field(min_length=1)]


class PrepareDataConfig(Config):
    """What prepare_data reads and how it splits it. At least one source is needed; each kind takes one or a list."""

    sft: OneOrMore | None = None
    """Demonstrations: records of prompt and completion, or of messages."""
    preferences: OneOrMore | None = None
    """Records of prompt, chosen and rejected."""
    prompts: OneOrMore | None = None
    """Records of prompt; other columns are kept for rewards. Without it the prompts of the preferences are used, else
    those of the demonstrations."""
    ptx: OneOrMore | None = None
    """Records for PPO's pretraining loss: as for sft, or of text alone, which is all completion."""
    test_share: float = Field(0.05, gt=0, lt=1)
    """Share of the distinct prompts that is held out, by a hash of the prompt's text: a grown data set keeps its split,
    and no prompt stands on both sides, in whichever source it comes."""
    split_salt: str = "alignment"
    """Mixed into the hash that holds prompts out: another salt, another split."""
    max_bad_share: float = Field(0.02, ge=0, le=1)
    """The stage stops when a larger share of a source's records is unusable."""

    def given(self) -> dict[Kind, list[SourceConfig]]:
        """The sources of every kind that has one, in the order in which they are given."""
        values: dict[Kind, OneOrMore | None] = {kind: getattr(self, kind) for kind in KINDS}
        return {
            kind: value if isinstance(value, list) else [value] for kind, value in values.items() if value is not None
        }

    @property
    def prompts_lender(self) -> Kind | None:
        """The kind whose prompts serve as the prompts; None where prompts have a source of their own, or none lends."""
        given = self.given()
        lenders: tuple[Kind, ...] = ("preferences", "sft")
        return None if "prompts" in given else next((kind for kind in lenders if kind in given), None)

    def input_name(self, kind: Kind, source: SourceConfig, *, test: bool = False) -> str:
        """The name of a source's input: `prompts`, `prompts_test`; of one among several `prompts.NAME`."""
        several = len(self.given()[kind]) > 1
        return kind + ("_test" if test else "") + (f".{source.data_set}" if several else "")

    def sources(self) -> dict[str, str]:
        """Input name -> path of everything to fetch beforehand; python: sources need nothing."""
        paths: dict[str, str] = {}
        for kind, sources in self.given().items():
            for source in sources:
                if not source.is_python:
                    paths[self.input_name(kind, source)] = source.path
                if source.test_path is not None:
                    paths[self.input_name(kind, source, test=True)] = source.test_path
        return paths

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.given():
            raise ValueError(f"no source is given; set at least one of {', '.join(KINDS)}.")
        for kind, sources in self.given().items():
            _check_names(kind, sources)
            for source in sources:
                _check_columns(kind, source)
        return self


def _last_part(path: str) -> str:
    """The file's, folder's, hub data set's or function's name, without a data file's ending and a hub revision."""
    last = re.split(r"[/:]", path.rstrip("/"))[-1].partition("@")[0]
    stem = re.sub(r"\.(json|jsonl|csv|parquet)$", "", last, flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "_", stem) or "data"


def _check_names(kind: Kind, sources: list[SourceConfig]) -> None:
    paths: dict[str, str] = {}
    for source in sources:
        if source.data_set in paths:
            raise ValueError(
                f"two sources of {kind} are called {source.data_set}: {paths[source.data_set]} and {source.path}. "
                "Give one of them another name."
            )
        paths[source.data_set] = source.path


def _check_columns(kind: Kind, source: SourceConfig) -> None:
    unknown = set(source.columns) - FIELDS[kind]
    if unknown and kind != "prompts":
        raise ValueError(
            f"{kind}.columns names {', '.join(sorted(unknown))}, but our columns are "
            f"{', '.join(sorted(FIELDS[kind]))}. Write our column on the left, the source's on the right."
        )
    if SOURCE_COLUMN in unknown:
        raise ValueError(
            f"{kind}.columns makes a column `{SOURCE_COLUMN}`, which holds the data set's name. Choose another name."
        )
