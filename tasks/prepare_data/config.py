"""The options of prepare_data: where records come from, what their columns are called, what is held out."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tasks.config import Config

Kind = Literal["sft", "preferences", "prompts"]
KINDS: tuple[Kind, ...] = ("sft", "preferences", "prompts")
PYTHON_PREFIX = "python:"

FIELDS = {
    "sft": {"prompt", "completion", "messages"},
    "preferences": {"prompt", "chosen", "rejected"},
    "prompts": {"prompt"},
}


class SourceConfig(Config):
    """One source of records: files, a hub data set, or a Python generator."""

    path: str = Field(
        min_length=1,
        title="Path",
        description="A local file or folder, s3://bucket/key, a hub name (hf://org/name), or python:module:function, "
        "a callable that yields records as dicts. Files end in .json, .jsonl, .csv or .parquet.",
    )
    test_path: str | None = Field(
        None,
        min_length=1,
        title="Held-out path",
        description="Records to hold out, in the same forms as path. Without it a share of path is held out.",
    )
    split: str | None = Field(
        None, title="Split", description="Split of a folder or hub data set to read; 'train' if not given."
    )
    subset: str | None = Field(None, title="Subset", description="Configuration of a hub data set that has several.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        title="Columns",
        description="Our column -> the source's, e.g. {prompt: question}. Columns of the same name need no entry.",
    )
    separator: str = Field(
        " ",
        title="Separator",
        description="Put between a plain prompt and its completion when no white space stands there. "
        "It becomes the start of the completion.",
    )
    max_records: int | None = Field(
        None,
        ge=1,
        title="Most records",
        description="Read only this many records of path and of test_path, from the start; None = all.",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, title="Arguments", description="Keyword arguments of a python: source."
    )

    @property
    def is_python(self) -> bool:
        """True for a python:module:function source."""
        return self.path.startswith(PYTHON_PREFIX)

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


class PrepareDataConfig(Config):
    """What prepare_data reads and how it splits it. At least one source is needed."""

    sft: SourceConfig | None = Field(
        None, title="Demonstrations", description="Records of prompt and completion, or of messages."
    )
    preferences: SourceConfig | None = Field(
        None, title="Preferences", description="Records of prompt, chosen and rejected."
    )
    prompts: SourceConfig | None = Field(
        None,
        title="Prompts",
        description="Records of prompt; other columns are kept for rewards. "
        "Without it the prompts of the preferences are used, else those of the demonstrations.",
    )
    test_share: float = Field(
        0.05,
        gt=0,
        lt=1,
        title="Held-out share",
        description="Share of the distinct prompts that is held out, by a hash of the prompt's text: a grown data set "
        "keeps its split, and no prompt stands on both sides, in whichever source it comes.",
    )
    split_salt: str = Field(
        "alignment",
        title="Split salt",
        description="Mixed into the hash that holds prompts out: another salt, another split.",
    )
    max_bad_share: float = Field(
        0.02,
        ge=0,
        le=1,
        title="Most bad records",
        description="The stage stops when a larger share of a source's records is unusable.",
    )

    def given(self) -> dict[Kind, SourceConfig]:
        """The sources that are set, by kind."""
        return {kind: source for kind in KINDS if (source := getattr(self, kind)) is not None}

    @property
    def prompts_lender(self) -> Kind | None:
        """The source whose prompts serve as the prompts; None where prompts have a source of their own."""
        if self.prompts is not None:
            return None
        return "sft" if self.preferences is None else "preferences"

    def sources(self) -> dict[str, str]:
        """Input name -> path of everything to fetch beforehand: `sft`, `sft_test`, ... python: sources need nothing."""
        paths: dict[str, str] = {}
        for kind, source in self.given().items():
            if not source.is_python:
                paths[kind] = source.path
            if source.test_path is not None:
                paths[f"{kind}_test"] = source.test_path
        return paths

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.given():
            raise ValueError(f"no source is given; set at least one of {', '.join(KINDS)}.")
        for kind in ("sft", "preferences"):
            source: SourceConfig | None = getattr(self, kind)
            unknown = set(source.columns) - FIELDS[kind] if source else set()
            if unknown:
                raise ValueError(
                    f"{kind}.columns names {', '.join(sorted(unknown))}, but our columns are "
                    f"{', '.join(sorted(FIELDS[kind]))}. Write our column on the left, the source's on the right."
                )
        return self
