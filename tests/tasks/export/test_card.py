import yaml
from huggingface_hub import ModelCard

from tasks.export.card import Facts, Parent, flatten, front_matter, model_card
from tasks.export.config import ExportConfig
from tasks.export.package import Trial

CONFIG = ExportConfig(name="Kind: a model", base_model="org/base", license="apache-2.0", language=["en"])
TRIAL = Trial(
    loads_with="AutoModelForCausalLM.from_pretrained",
    loaded_class="LlamaForCausalLM",
    transformers_version="5.0",
    prompt='Say "hi"',
    answer="hi *there*",
    max_logit_difference=0.0,
    max_logit=3.0,
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
        "language": ["en"],
    }
    assert card.text.lstrip().startswith("# Kind: a model")


def test_what_is_not_known_is_not_in_the_front_matter():
    assert set(yaml.safe_load(front_matter(ExportConfig()).strip("-"))) == {"library_name", "pipeline_tag", "tags"}


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


def test_flat_facts_leave_out_lists_and_long_texts():
    report = {"a": 1, "b": {"c": 0.5, "d": "x" * 121}, "e": [1], "f": None, "g": "short"}

    assert flatten(report) == {"a": 1, "b.c": 0.5, "g": "short"}


def test_the_tree_of_the_lineage_stands_where_it_is_known():
    facts = Facts(**{**vars(FACTS), "tree": "└─ model (model) 4c1f"})
    section = model_card(CONFIG, facts).partition("## How it was made")[2].partition("\n### ")[0]

    assert "~~~~text\n└─ model (model) 4c1f\n~~~~" in section
    assert "~~~~text\n\n" not in model_card(CONFIG, FACTS)
