"""Supervised fine-tuning: what counts in the loss, what is saved, and resuming."""

import json
import math
import os
import signal

import pytest
import torch
from torch.nn import functional

from tasks.errors import InputError
from tasks.hf_trainer import CHECKPOINTS, last_checkpoint
from tasks.models.model_files import kind_of
from tasks.models.modeling import load_causal_lm, load_tokenizer
from tasks.sft import train as sft
from tasks.sft.config import SFTConfig
from tasks.sft.train import IGNORED, completion_losses, encode, main
from tasks.templates import ConversationTemplate
from tasks.tracking import read_metrics
from tests.tasks.tiny_models import EOS_ID, UNK_ID, make_model, make_tokenizer, write_model, write_split

pytestmark = pytest.mark.slow

RECORDS = [
    {"prompt": "a b", "completion": " c"},
    {"prompt": "good", "completion": " film d e"},
    {"prompt": "bad film", "completion": " a"},
    {"prompt": "c d", "completion": " b a good"},
] * 4
SCRATCH = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24, "vocab_size": 300}
QUICK = {"learning_rate": 1e-2, "max_steps": 3, "per_device_batch_size": 4, "max_length": 32, "eval_steps": 2}


def write_data(folder):
    write_split(folder, "sft", "train", RECORDS)
    write_split(folder, "sft", "test", RECORDS[:4])
    return folder


def run(tmp_path, output="output", with_model=True, **options):
    data = write_data(tmp_path / "data")
    inputs = {"data": data} | ({"model": write_model(tmp_path / "model")} if with_model else {})
    folder = tmp_path / output
    folder.mkdir(exist_ok=True)
    main(SFTConfig(**{**QUICK, **options}), inputs, folder)
    return folder


def test_labels_count_the_completion_and_its_eos_only():
    tokenizer = make_tokenizer()
    row = encode(tokenizer, RECORDS[:1], max_length=16).dataset[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["a", " b", " c", "<eos>"]
    assert row["labels"] == [IGNORED, IGNORED, row["input_ids"][2], EOS_ID]


def test_a_word_that_the_tokenizer_does_not_hold_is_not_learned():
    record = {"prompt": "zebra a", "completion": " zebra film"}
    row = encode(make_tokenizer(), [record], max_length=16).dataset[0]
    assert row["input_ids"][2] == UNK_ID
    assert row["labels"] == [IGNORED, IGNORED, IGNORED, row["input_ids"][3], EOS_ID]
    gpt2_like = make_tokenizer()
    gpt2_like.eos_token = gpt2_like.unk_token
    assert encode(gpt2_like, [record], max_length=16).dataset[0]["labels"][-1] == UNK_ID


TEMPLATE = {
    "chat_template": "{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}",
    "system_message": "film",
}


def test_a_template_makes_conversations_of_plain_records():
    tokenizer = make_tokenizer()
    row = encode(tokenizer, RECORDS[:1], 16, ConversationTemplate(**TEMPLATE)).dataset[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == [" film", " a", " b", " c", "<eos>"]


def test_training_uses_the_template_and_saves_it_with_the_tokenizer(tmp_path):
    plain, conversing = run(tmp_path, "plain"), run(tmp_path, "conversing", conversation_template=TEMPLATE)
    assert load_tokenizer(plain).chat_template is None
    assert load_tokenizer(conversing).chat_template == TEMPLATE["chat_template"]
    losses = [json.loads((output / "report.json").read_text())["eval_loss"] for output in (plain, conversing)]
    assert losses[0] != losses[1]


def test_records_are_cut_at_max_length_and_dropped_where_no_completion_remains():
    rows = encode(
        make_tokenizer(), [{"prompt": "a b", "completion": " c d"}, {"prompt": "a b c", "completion": " d"}], 3
    )
    assert (rows.num_cut, rows.num_dropped) == (1, 1)
    assert rows.dataset[0]["labels"][:2] == [IGNORED, IGNORED]
    assert len(rows.dataset[0]["input_ids"]) == 3


def test_records_that_all_exceed_max_length_are_refused():
    with pytest.raises(InputError, match="Raise max_length"):
        encode(make_tokenizer(), RECORDS[:1], max_length=2)


def test_the_loss_is_the_log_likelihood_of_labelled_tokens():
    model = make_model()
    ids = torch.tensor([[3, 5, 7, 9], [4, 6, EOS_ID, 0]])
    labels = torch.tensor([[IGNORED, IGNORED, 7, 9], [IGNORED, 6, EOS_ID, IGNORED]])
    logprobs = functional.log_softmax(model(ids).logits, dim=-1)
    expected = [-logprobs[row, at - 1, token] for row, at, token in ((0, 2, 7), (0, 3, 9), (1, 1, 6), (1, 2, EOS_ID))]
    torch.testing.assert_close(completion_losses(model, ids, labels), torch.stack(expected))


def test_the_loss_and_its_gradient_are_transformers_own():
    ids = torch.tensor([[3, 5, 7, 9], [4, 6, EOS_ID, 0]])
    labels = torch.tensor([[IGNORED, IGNORED, 7, 9], [IGNORED, 6, EOS_ID, IGNORED]])
    ours, theirs = make_model(), make_model()
    completion_losses(ours, ids, labels).mean().backward()
    theirs(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
    for (name, parameter), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


def test_the_head_is_as_it_was_after_a_loss():
    model = make_model()
    completion_losses(model, torch.tensor([[3, 5]]), torch.tensor([[IGNORED, 5]]))
    assert model(torch.tensor([[3, 5]])).logits.shape == (1, 2, 19)


def held_out_loss(model, tokenizer):
    """The mean over all completion tokens, one row at a time."""
    losses = []
    for row in encode(tokenizer, RECORDS[:4], 32).dataset:
        logprobs = functional.log_softmax(model(torch.tensor([row["input_ids"]])).logits[0], dim=-1)
        losses += [-logprobs[at - 1, label].item() for at, label in enumerate(row["labels"]) if label != IGNORED]
    return sum(losses) / len(losses)


def test_full_fine_tuning_saves_a_model_whose_held_out_loss_is_the_reported_one(tmp_path):
    output = run(tmp_path)
    report = json.loads((output / "report.json").read_text())
    assert kind_of(output) == "model"
    model = load_causal_lm(output)
    assert report["eval_loss"] == pytest.approx(held_out_loss(model, make_tokenizer()), rel=1e-4)
    assert report["eval_perplexity"] == pytest.approx(math.exp(report["eval_loss"]))
    assert report["eval_loss"] < held_out_loss(make_model(), make_tokenizer())
    published = {path.suffix for path in output.iterdir() if path.is_file()}
    assert published == {".json", ".safetensors", ".jsonl", ".png"}
    assert str(tmp_path) not in "".join(path.read_text() for path in output.glob("*.json"))
    last = read_metrics(output)[-1]
    assert last["step"] == last["total_steps"] == 3
    names = {name for record in read_metrics(output) for name in record}
    assert {"train_loss", "eval_loss", "learning_rate", "grad_norm"} <= names


def test_lora_saves_an_adapter_and_leaves_the_base_alone(tmp_path):
    output = run(tmp_path, lora={"r": 2})
    assert kind_of(output) == "adapter"
    report = json.loads((output / "report.json").read_text())
    # layers x (4 attention matrices 16x16, 3 of the MLP 16x24), each rank x (in + out)
    assert report["num_trained_parameters"] == 2 * 2 * (4 * 32 + 3 * 40)


def test_a_model_from_scratch_gets_a_tokenizer_of_its_corpus(tmp_path):
    output = run(tmp_path, with_model=False, from_scratch={**SCRATCH, "tokenizer": "word"})
    assert kind_of(output) == "model"
    assert json.loads((output / "report.json").read_text())["vocab_size"] < 40


@pytest.mark.parametrize("average_from", [None, 0.25])
def test_a_resumed_run_ends_as_an_undisturbed_one(tmp_path, monkeypatch, average_from):
    options = {"max_steps": 4, "save_steps": 2, "average_from": average_from}
    whole = run(tmp_path, "whole", **options)
    steps = []
    original = sft.CompletionTrainer.training_step

    def interrupted(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(sft.CompletionTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "resumed", **options)
    resumed = run(tmp_path, "resumed", **options)
    assert steps == [0, 1, 2, 3, 2, 3]
    first, second = load_causal_lm(whole).state_dict(), load_causal_lm(resumed).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [record["step"] for record in read_metrics(resumed)] == sorted(r["step"] for r in read_metrics(resumed))


@pytest.mark.parametrize("average_from", [None, 0.25])
def test_a_run_that_was_interrupted_after_its_last_step_trains_no_further(tmp_path, monkeypatch, average_from):
    options = {"max_steps": 3, "save_steps": 3, "average_from": average_from}  # 4 make an epoch
    first = load_causal_lm(run(tmp_path, **options)).state_dict()
    monkeypatch.setattr(sft.CompletionTrainer, "training_step", None)
    (tmp_path / "output" / "model.safetensors").unlink()
    second = load_causal_lm(run(tmp_path, **options)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_smaller_batches_do_the_same_mathematics(tmp_path):
    config = SFTConfig(**QUICK)
    less = config.with_less_memory("cpu").model_dump(include={"per_device_batch_size", "gradient_accumulation_steps"})
    whole, halved = run(tmp_path, "whole"), run(tmp_path, "halved", **less)
    first, second = load_causal_lm(whole).state_dict(), load_causal_lm(halved).state_dict()
    assert less == {"per_device_batch_size": 2, "gradient_accumulation_steps": 2}
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=2e-3)  # 0.03 from the start: Adam's sign


@pytest.mark.parametrize("average_from", [None, 0.25])
def test_sigterm_ends_after_the_step_with_a_checkpoint_and_status_143(tmp_path, monkeypatch, average_from):
    options = {"max_steps": 4, "save_steps": 100, "average_from": average_from}
    original = sft.CompletionTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(sft.CompletionTrainer, "training_step", interrupted)
        with pytest.raises(SystemExit) as ended:
            run(tmp_path, "stopped", **options)
    assert ended.value.code == 143
    assert last_checkpoint(tmp_path / "stopped").name == "checkpoint-2"
    assert signal.getsignal(signal.SIGTERM) is before
    whole, resumed = run(tmp_path, "whole", **options), run(tmp_path, "stopped", **options)
    first, second = load_causal_lm(whole).state_dict(), load_causal_lm(resumed).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_result_is_the_mean_of_the_weights_of_the_later_steps(tmp_path, monkeypatch):
    weights = []
    original = sft.CompletionTrainer.training_step

    def watched(self, model, *args, **kwargs):  # the weights before a step are those after the one before
        weights.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(sft.CompletionTrainer, "training_step", watched)
    saved = load_causal_lm(run(tmp_path, "averaged", max_steps=5, average_from=0.4))
    last = load_causal_lm(run(tmp_path, "last", max_steps=5))
    after = [*weights[1:5], dict(last.named_parameters())]  # steps 1 to 5, the same in both runs
    for name, parameter in saved.named_parameters():
        mean = (after[2][name] + after[3][name] + after[4][name]) / 3
        torch.testing.assert_close(parameter, mean)
        assert not torch.equal(parameter, last.get_parameter(name))
    assert json.loads((tmp_path / "averaged" / "report.json").read_text())["eval_loss"] == pytest.approx(
        held_out_loss(saved, make_tokenizer()), rel=1e-4
    )


def test_a_checkpoint_without_averages_is_not_resumed_into_an_average(tmp_path):
    run(tmp_path, max_steps=2, save_steps=1)
    with pytest.raises(InputError, match="was written without average_from"):
        run(tmp_path, max_steps=3, save_steps=1, average_from=0.5)


def test_a_half_written_checkpoint_is_not_resumed(tmp_path):
    for step, names in ((10, ["trainer_state.json"]), (9, ["trainer_state.json"]), (20, ["model.safetensors"])):
        folder = tmp_path / CHECKPOINTS / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("{}")
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / CHECKPOINTS / "checkpoint-20" / "trainer_state.json").write_text('{"half')
    assert last_checkpoint(tmp_path).name == "checkpoint-10"


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="--input model"):
        run(tmp_path, with_model=False)


def test_a_model_beside_from_scratch_is_refused(tmp_path):
    with pytest.raises(InputError, match="Drop one of them"):
        run(tmp_path, from_scratch=SCRATCH)
