import pytest
import yaml
from huggingface_hub import ModelCard

from tasks.errors import InputError
from tasks.export.card import Facts, model_card
from tasks.export.config import ExportConfig
from tasks.export.front_matter import check_card, front_matter
from tasks.export.origins import DataFile, Origins
from tasks.export.parents import Parent
from tasks.export.reproduction import Reproduction
from tasks.export.trial import Trial

CONFIG = ExportConfig(name="Kind: a model", language=["en"])
ORIGINS = Origins(
    base_model="org/base",
    license="apache-2.0",
    license_source="the card of the base model",
    data_license="unknown",
    datasets=("org/pairs",),
    data_files=(DataFile("sft_train.parquet", 1200, "ab" * 32),),
)
UNKNOWN = Origins(None, "unknown", "nobody names one", "unknown")
TRIAL = Trial(
    loads_with="AutoModelForCausalLM.from_pretrained",
    loaded_class="LlamaForCausalLM",
    transformers_version="5.0",
    prompt='Say "hi"',
    answer="hi *there*",
    max_logit_difference=0.0,
    max_logit=3.0,
    tolerance=0.0,
    num_greedy_texts=4,
    num_greedy_texts_equal=4,
)
LINEAGE = {"uri": "s3://bucket/sft/1", "digest": "abc123", "config": {"learning_rate": 1e-05}}
FACTS = Facts(
    parents={
        "model": Parent({}, {}),
        "data": Parent({"source": "reviews.jsonl", "counts": {"sft_train": 900}, "rejects": ["x"]}, {}),
        "sft": Parent({"eval_loss": 2.3456789}, LINEAGE),
    },
    origins=ORIGINS,
    reproduction=Reproduction("c0ffee", {"torch": "2.13.0"}, {"ppo.seed": 3}, {"ppo": {"seed": 3}}),
    serve="vllm serve . --dtype float32",
    results="# PPO against SFT\n\n**PPO beats SFT.**\n\n## Figures\n\n| a |\n",
    num_parameters=1234567,
    dtype="float32",
    conversational=False,
    sampling={"response_length": 64, "temperature": 0.7},
    trial=TRIAL,
)


def test_the_hub_reads_the_front_matter():
    card = ModelCard(model_card(CONFIG, FACTS))

    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "ppo", "reinforcement-learning"],
        "base_model": "org/base",
        "license": "apache-2.0",
        "datasets": ["org/pairs"],
        "language": ["en"],
    }
    assert card.text.lstrip().startswith("# Kind: a model")


def test_of_what_is_not_known_the_front_matter_names_the_licence_alone():
    fields = yaml.safe_load(front_matter(ExportConfig(), UNKNOWN).strip("-"))

    assert set(fields) == {"library_name", "pipeline_tag", "tags", "license"}
    assert fields["license"] == "unknown"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("base_model: org/base", "base_model: /home/me/base"), "base_model '/home/me/base' is no name on the hub"),
        (("- org/pairs", "- a/b/c"), "datasets 'a/b/c' is no name"),
        (("license: apache-2.0", "license: Apache 2"), "license 'Apache 2' is no identifier"),
        (("license: apache-2.0\n", ""), "license is missing"),
        (("language:\n- en", "language: {en: 1}"), "language must be a list"),
        (("tags:\n", "tags: [\n"), "cannot be read"),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_refused_here(change, fault):
    card = model_card(CONFIG, FACTS)
    check_card(card)
    assert change[0] in card

    with pytest.raises(InputError, match=fault):
        check_card(card.replace(*change))


def test_the_card_says_what_it_is_and_gives_code_that_python_accepts():
    card = model_card(CONFIG, FACTS)
    code = card.partition("```python\n")[2].partition("```")[0]

    compile(code, "README.md", "exec")
    assert '"Say \\"hi\\""' in code
    assert "(LlamaForCausalLM, 1,234,567 parameters, float32)" in card
    assert "from [org/base](https://huggingface.co/org/base)" in card


def test_a_conversational_model_is_asked_through_its_chat_template():
    facts = Facts(**{**vars(FACTS), "conversational": True})
    code = model_card(CONFIG, facts).partition("```python\n")[2].partition("```")[0]

    compile(code, "README.md", "exec")
    assert "apply_chat_template" in code


def test_the_evaluations_report_stands_under_results():
    card = model_card(CONFIG, FACTS)

    results = card.partition("## Results\n")[2].partition("\n## ")[0]
    assert "**PPO beats SFT.**" in results
    assert "### Figures" in results
    assert "# PPO against SFT" not in card


def test_data_parents_settings_and_figures_are_told():
    card = model_card(CONFIG, FACTS)

    assert "| counts.sft_train | 900 |" in card
    assert "| SFT model | `s3://bucket/sft/1` | `abc123` |" in card
    assert '"learning_rate": 1e-05' in card
    assert "| eval_loss | 2.34568 |" in card
    assert "temperature 0.7" in card.partition("## Limits")[2]


def test_a_card_without_data_and_training_figures_still_stands():
    facts = Facts(**{**vars(FACTS), "parents": {"model": Parent({}, {})}})

    card = model_card(ExportConfig(), facts)

    assert "## Data" not in card
    assert "### SFT model" not in card
    assert "| Model before export |  |  |" in card


def test_the_tree_of_the_lineage_stands_where_it_is_known():
    facts = Facts(**{**vars(FACTS), "tree": "└─ model (model) 4c1f"})
    section = model_card(CONFIG, facts).partition("## How it was made")[2].partition("\n### ")[0]

    assert "~~~~text\n└─ model (model) 4c1f\n~~~~" in section
    assert "~~~~text\n\n" not in model_card(CONFIG, FACTS)


def test_commit_versions_seeds_and_command_are_told():
    section = model_card(CONFIG, FACTS).partition("## How to make it again")[2].partition("\n## ")[0]

    assert "`c0ffee`" in section
    assert "torch 2.13.0" in section
    assert "ppo.seed 3" in section
    assert "`python -m infra.run reproduce --file reproduce.yaml`" in section


def test_a_model_of_unknown_making_says_so():
    facts = Facts(**{**vars(FACTS), "reproduction": Reproduction(None, {}, {}, {}), "origins": UNKNOWN, "results": ""})
    card = model_card(ExportConfig(), facts)

    assert "Commit of the program: unknown" in card
    assert "with which options the model was made is unknown" in card
    assert "- Model: **unknown** (nobody names one)." in card
    assert "This model was not evaluated" in card
    assert "## Results" not in card


def test_licences_and_hashes_of_the_data_are_told():
    card = model_card(CONFIG, FACTS)

    assert "- Model: **apache-2.0** (the card of the base model)." in card
    assert "- Data: **unknown**; from [org/pairs](https://huggingface.co/datasets/org/pairs)." in card
    assert f"| `sft_train.parquet` | 1,200 | `{'ab' * 32}` |" in card


def test_every_further_form_is_told_with_its_distance():
    trial = Trial(**{**vars(TRIAL), "loads_with": "PEFT", "max_logit_difference": 0.25, "num_greedy_texts_equal": 3})
    card = model_card(CONFIG, Facts(**{**vars(FACTS), "forms": {"adapter": trial}}))

    assert "| `adapter` | PEFT | 0.25 of 3 | 3 of 4 |" in card
    assert "### Other forms" not in model_card(CONFIG, FACTS)
