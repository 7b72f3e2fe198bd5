"""The options of `export`: the finished model as users load it, and the further forms of it."""

import re
from typing import Literal

from pydantic import Field, field_validator

from tasks.config import Config, ProofConfig

Quantization = Literal["int8", "int4"]
HUB = "https://huggingface.co"
HUB_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


class AdapterForm(Config):
    """The adapter alone, in the folder `adapter` of the export and in PEFT's format."""

    base: str | None = Field(None, min_length=1)
    """Where users find the model that the adapter was trained on: a hub name or a folder. PEFT loads it from there.
    None = where the chain took it from, which has to be the hub or a folder."""
    tolerance: float = Field(0.001, gt=0)
    """Largest difference of a logit from the merged model, as a share of the largest, where that is float32: the same
    sums in another order. In less than float32 `logit_tolerance` holds."""


class HubForm(Config):
    """A repository on a hub, to which the finished export is pushed. The token is $HF_TOKEN's."""

    repository: str = Field(pattern=r"^\w[\w.-]*/\w[\w.-]*$")
    """Organisation or user, and name; made if there is none."""
    private: bool = True
    """Of a repository that is made now: only its owner sees it. The card names addresses of your store."""
    endpoint: str = Field(HUB, pattern=r"^https?://")
    """Address of the hub."""


class ExportConfig(ProofConfig):
    """In which forms the model is written, on what each is compared with it, and what only you know for its card."""

    name: str = Field("Aligned model", min_length=1)
    """Title of the model card."""
    base_model: str | None = None
    """Hub name of the model that the chain started from, for the card; None = the one that the chain took, if it came
    from the hub."""
    license: str | None = None
    """Of the model: a hub identifier such as apache-2.0; the base model's terms go on applying. None = what the base's
    own card says, else the card says that it is unknown."""
    data_license: str | None = Field(None, min_length=1)
    """Of the training data, in words; None = the card says that it is unknown."""
    language: list[str] = Field(default_factory=list)
    """ISO 639 codes for the card, such as en."""
    dtype: Literal["as_is", "float32", "bfloat16", "float16"] = "as_is"
    """Of the weights in the files. as_is keeps the model's own, and the export then gives equal logits."""
    max_shard_size: str = Field("5GB", pattern=r"^\d+[KMG]B$")
    """Weights beyond it go into a further file; the memory needed for writing is about that of two."""
    logit_tolerance: float = Field(0.05, gt=0)
    """Largest difference of a logit that a changed precision may cause, as a share of the largest. bfloat16 rounds
    each weight by up to 2^-9 of itself; without a change the logits must be equal."""
    adapter: AdapterForm | None = None
    """Also the adapter that PPO trained, without its base; None = not."""
    quantized: list[Quantization] = Field(default_factory=list)
    """Also the model in 8 or 4 bits, in folders of these names; needs the extra `quantized`. int4 is 4-bit
    NormalFloat."""
    int8_tolerance: float = Field(0.1, gt=0)
    """As logit_tolerance, for int8."""
    int4_tolerance: float = Field(0.5, gt=0)
    """As logit_tolerance, for int4, where a weight is one of 16 values. On the demo's model, 128 numbers wide, int8
    differs by 0.04 and int4 by 0.31 of the largest logit."""
    modelfile: bool = False
    """Also a Modelfile for Ollama: the chat template, stop strings and sampling in its own terms."""
    hub: HubForm | None = None
    """Push all of it to a hub, at the end; None = not."""

    def quantized_tolerance(self, form: Quantization) -> float:
        """How far the logits of that form may be from the source's, as a share of the largest."""
        return {"int8": self.int8_tolerance, "int4": self.int4_tolerance}[form]

    @field_validator("quantized")
    @classmethod
    def _each_once(cls, forms: list[Quantization]) -> list[Quantization]:
        return list(dict.fromkeys(forms))

    @field_validator("license")
    @classmethod
    def _is_a_hub_identifier(cls, license: str | None) -> str | None:
        if license is not None and not HUB_LICENSE.fullmatch(license):
            raise ValueError(f"expected a hub identifier such as apache-2.0, mit or other, got {license!r}")
        return license
