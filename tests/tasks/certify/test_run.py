"""The stage on a tiny language model and reward models trained from it, one on the pairs the wrong way round."""

import json
import random

import numpy as np
import pytest
import torch

from tasks.certify.config import CertifyConfig
from tasks.certify.readers import make_reader
from tasks.certify.responses import answer_prompts, choose_prompts
from tasks.certify.run import main
from tasks.config import SamplingConfig
from tasks.data import pad_right
from tasks.episodes import join
from tasks.errors import InputError
from tasks.models.modeling import load_reward_model
from tasks.prompts import read_prompts
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.train import main as train
from tasks.rewards.config import ModelReward
from tasks.rewards.sources import Answers, load_rewards
from tasks.templates import ConversationTemplate
from tests.tasks.rewards import tiny as foreign
from tests.tasks.tiny_models import EOS_ID, make_tokenizer, write_model, write_split

pytestmark = pytest.mark.slow

NEUTRAL = ("a", "b", "c", "d", "e", "film")
TRAINING = {"learning_rate": 1e-2, "max_steps": 12, "per_device_batch_size": 16, "max_length": 32, "eval_steps": 12}
CONFIG = CertifyConfig(num_prompts=60, sampling=SamplingConfig(response_length=8))
NUM_PAIRS = 120


def make_pairs(count, seed):
    """Pairs whose chosen response says good and whose rejected one says bad, among one to three other words."""
    draw = random.Random(seed)

    def response(word):
        words = [word, *draw.choices(NEUTRAL, k=draw.randint(1, 3))]
        draw.shuffle(words)
        return "".join(f" {word}" for word in words)

    prompts = [" ".join(draw.choices(NEUTRAL, k=3)) for _ in range(count)]
    return [{"prompt": prompt, "chosen": response("good"), "rejected": response("bad")} for prompt in prompts]


def flip(pairs):
    return [{"prompt": pair["prompt"], "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs]


def write_data(folder, change=lambda pairs: pairs):
    for split, seed in (("train", 1), ("test", 2)):
        pairs = make_pairs(NUM_PAIRS, seed)
        write_split(folder, "preferences", split, change(pairs))
        write_split(folder, "prompts", split, [{"prompt": pair["prompt"]} for pair in pairs])
        sft = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
        write_split(folder, "sft", split, sft)
    return folder


def write_trained(folder, data, model, **options):
    folder.mkdir()
    train(RewardModelConfig(**TRAINING, **options), {"data": data, "model": model}, folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The inputs of a sound chain, and beside them a reward model that was trained on the pairs the wrong way round."""
    root = tmp_path_factory.mktemp("world")
    data, model = write_data(root / "data"), write_model(root / "model")
    flipped = write_data(root / "flipped_data", flip)
    return {
        "data": data,
        "model": model,
        "reward_model": write_trained(root / "reward_model", data, model, half="first"),
        "second_reward_model": write_trained(root / "second_reward_model", data, model, half="second"),
        "flipped": write_trained(root / "flipped", flipped, model),
    }


def certified(world, output, config=CONFIG, **changes):
    inputs = {name: world[name] for name in ("data", "model", "reward_model")} | changes
    output.mkdir()
    main(config, inputs, output)
    return json.loads((output / "report.json").read_text())


def verdicts(report):
    return {one["measures"]: one["verdict"] for one in report["verdicts"]}


def scores_of(folder, texts):
    """Each text's score at EOS, row by row."""
    model, tokenizer = load_reward_model(folder), make_tokenizer()
    rows = [torch.tensor([[*tokenizer(text)["input_ids"], EOS_ID]]) for text in texts]
    return np.array([model(row)[0, -1].item() for row in rows])


def test_a_sound_reward_model_is_certified_with_figures_of_its_own_scores(world, tmp_path):
    report = certified(world, tmp_path / "one")
    assert report["is_open"]
    assert set(verdicts(report).values()) == {"passed", "not applicable"}
    pairs = make_pairs(NUM_PAIRS, 2)
    chosen, rejected = (
        scores_of(world["reward_model"], [pair["prompt"] + pair[side] for pair in pairs])
        for side in ("chosen", "rejected")
    )
    assert report["num_pairs"] == NUM_PAIRS
    assert report["pair_accuracy"] == (chosen > rejected).mean() > 0.9
    assert report["mean_margin"] == pytest.approx((chosen - rejected).mean(), abs=1e-4)
    assert report["score_mean_demonstrations"] == pytest.approx(chosen.mean(), abs=1e-4)
    longer = [len(pair["chosen"].split()) - len(pair["rejected"].split()) for pair in pairs]
    unequal = [difference for difference in longer if difference]
    assert report["longer_chosen"] == sum(difference > 0 for difference in unequal) / len(unequal)
    assert sum(one["num_pairs"] for one in report["reliability"]) == NUM_PAIRS
    assert (tmp_path / "one" / "certificate.png").read_bytes()[1:4] == b"PNG"
    assert "**PPO may follow this reward model: no threshold failed.**" in (tmp_path / "one" / "report.md").read_text()


def test_a_certificate_that_is_made_again_has_the_same_bytes(world, tmp_path):
    for name in ("one", "other"):
        certified(world, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["certificate.png", "report.json", "report.md"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize("is_foreign", [False, True])
def test_the_sft_models_answers_get_the_scores_that_ppo_would_give_them(world, tmp_path, is_foreign):
    folder = world["reward_model"]
    if is_foreign:
        folder = foreign.write_reward_model(tmp_path / "foreign", foreign.OTHER_TOKENS, max_position_embeddings=64)
    tokenizer = make_tokenizer()
    prompts = choose_prompts(CONFIG, read_prompts(world["data"], "test", tokenizer, None))
    responses = answer_prompts(CONFIG, world["model"], prompts, tokenizer)
    assert 0 < sum(response.ended for response in responses) < len(responses) == 60
    ids, mask = pad_right([response.response_ids for response in responses], 0)
    [reward] = load_rewards(
        [ModelReward()],
        {"policy": world["model"], "reward_model": folder},
        tokenizer,
        device=torch.device("cpu"),
        dtype="float32",
        micro_batch_tokens=256,
        log_folder=tmp_path,
        rank=0,
    )
    episodes = join([prompt.ids for prompt in prompts], ids, mask)
    expected = reward.scorer(Answers(prompts, episodes, [response.response for response in responses]))
    reader = make_reader(folder, world["model"], tokenizer, None)
    assert reader.reads_policy_tokens != is_foreign
    assert reader.scores({"sft": responses}, CONFIG)["sft"] == pytest.approx(expected.numpy(), abs=1e-4)


def test_the_seed_draws_the_answers(world):
    tokenizer = make_tokenizer()
    prompts = read_prompts(world["data"], "test", tokenizer, None)[:8]
    drawn = [
        [one.response_ids for one in answer_prompts(config, world["model"], prompts, tokenizer)]
        for config in (CONFIG, CONFIG, CONFIG.model_copy(update={"seed": 1}))
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_samples_are_the_answers_with_the_highest_and_lowest_scores(world, tmp_path):
    report = certified(world, tmp_path / "one")
    scores = [one["score"] for one in report["samples"]]
    assert len(scores) == 6
    assert scores == sorted(scores, reverse=True)
    assert scores[2] >= report["score_q95_sft"] > report["score_q05_sft"] >= scores[3]


def test_a_reward_model_of_flipped_pairs_is_refused_and_the_override_lets_it_through_and_is_recorded(world, tmp_path):
    refused = certified(world, tmp_path / "refused", reward_model=world["flipped"])
    assert not refused["is_open"]
    failed = [name for name, verdict in verdicts(refused).items() if verdict == "failed"]
    assert {"pair_accuracy", "pair_accuracy_low", "ece"} <= set(failed)
    assert "must not follow" in refused["verdict"]
    accepting = CONFIG.model_copy(update={"accept": failed})
    accepted = certified(world, tmp_path / "accepted", accepting, reward_model=world["flipped"])
    assert accepted["is_open"]
    assert accepted["accepted"] == failed
    assert [verdicts(accepted)[name] for name in failed] == ["accepted"] * len(failed)
    assert accepted["pair_accuracy"] == refused["pair_accuracy"] < 0.1


def test_a_second_reward_model_that_learnt_the_opposite_does_not_agree(world, tmp_path):
    agreeing = certified(world, tmp_path / "agreeing", second_reward_model=world["second_reward_model"])
    assert agreeing["second_agreement"] > 0.9
    assert agreeing["second_score_correlation"] > 0.5
    against = certified(world, tmp_path / "against", second_reward_model=world["flipped"])
    assert against["second_agreement"] < 0.1
    assert verdicts(against)["second_agreement"] == "failed"


def test_a_reward_model_of_other_tokens_reads_the_texts_and_has_to_be_accepted(world, tmp_path):
    folder = foreign.write_reward_model(tmp_path / "foreign", foreign.OTHER_TOKENS, max_position_embeddings=64)
    report = certified(world, tmp_path / "one", reward_model=folder)
    assert verdicts(report)["tokenizer_match"] == "failed"
    assert report["tokenizer"].startswith("The reward model has another tokenizer than the policy")
    model, tokenizer = load_reward_model(folder), foreign.make_tokenizer(foreign.OTHER_TOKENS)
    rows = [tokenizer(f"{pair['prompt']}{pair['chosen']}<eos>")["input_ids"] for pair in make_pairs(NUM_PAIRS, 2)]
    expected = [model(torch.tensor([row]))[0, -1].item() for row in rows]
    assert report["score_mean_chosen"] == pytest.approx(np.mean(expected), abs=1e-4)
    accepting = CONFIG.model_copy(update={"accept": ["tokenizer_match"]})
    assert verdicts(certified(world, tmp_path / "two", accepting, reward_model=folder))["tokenizer_match"] == "accepted"


def test_each_option_changes_what_it_should(world, tmp_path):
    def report(name, **changes):
        return certified(world, tmp_path / name, CONFIG.model_copy(update=changes))

    plain = report("plain")
    assert report("pairs", num_pairs=60)["num_pairs"] == report("train", num_pairs=60)["num_train_pairs"] == 60
    assert report("demonstrations", num_demonstrations=5)["num_demonstrations"] == 5
    assert len(report("splits", num_splits=3)["split_accuracies"]) == 3 != len(plain["split_accuracies"])
    assert report("seed", seed=1)["samples"] != plain["samples"]
    assert report("dtype", dtype="bfloat16")["mean_margin"] != plain["mean_margin"]
    words = "{% for message in messages %} {{ message.content }}{% endfor %}"
    template = ConversationTemplate(chat_template=words, system_message="film")
    assert report("template", conversation_template=template)["samples"] != plain["samples"]
    smaller = report("smaller", batch_size=7, token_budget=64)
    assert smaller["score_mean_sft"] == pytest.approx(plain["score_mean_sft"], abs=1e-4)
    assert [one["response"] for one in smaller["samples"]] == [one["response"] for one in plain["samples"]]


def test_a_lora_reward_model_is_read_on_the_policys_base(world, tmp_path):
    adapter = write_trained(tmp_path / "adapter", world["data"], world["model"], lora={"r": 4})
    report = certified(world, tmp_path / "one", reward_model=adapter)
    trained = json.loads((adapter / "report.json").read_text())
    assert report["pair_accuracy"] == trained["pair_accuracy"]
    assert report["mean_margin"] == pytest.approx(trained["mean_margin"], abs=1e-4)


def test_data_without_pairs_are_certified_by_the_answers_alone(world, tmp_path):
    data = tmp_path / "data"
    write_split(data, "prompts", "test", [{"prompt": pair["prompt"]} for pair in make_pairs(NUM_PAIRS, 2)])
    report = certified(world, tmp_path / "one", data=data)
    assert report["not_measured"]["pair_accuracy"] == "the data have no held-out pairs"
    assert verdicts(report)["pair_accuracy"] == "not applicable"
    assert report["score_std_sft"] > 0


def test_a_language_model_in_the_reward_models_place_is_refused(world, tmp_path):
    with pytest.raises(InputError, match="expected a reward model"):
        certified(world, tmp_path / "one", reward_model=world["model"])
