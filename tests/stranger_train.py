"""Run in test_install.py, far from the repository, with the extra [train]: search over
a list of passages, an agent, rewards, scores, then one step of training.

Usage: stranger_train.py PACKAGE-FOLDER MODEL-FOLDER. The model is the user's own."""

import csv
import sys
from pathlib import Path

import kr1_utils
from kr1_utils import corpus, models, rewards, scoring
from kr1_utils.agent import ScriptedEngine, rollout
from kr1_utils.profiles import resolve
from kr1_utils.retriever import Retriever
from kr1_utils.trainer import KnowledgeGRPOTrainer, grpo_config

PASSAGES = [
    {"id": "1", "title": "Dara Kallas", "text": "Dara Kallas was born in Merano."},
    {"id": "2", "title": "Merano", "text": "Merano is a town by a river."},
    {"id": "3", "title": "Oslo", "text": "Oslo is a city by the sea."},
]
QUESTIONS = [
    {
        "id": "1",
        "question": "Where was Dara Kallas born?",
        "golden_answers": ["Merano"],
    },
    {"id": "2", "question": "Which city is by the sea?", "golden_answers": ["Oslo"]},
]
SCRIPT = [
    "<think> I look.</think><search> Dara Kallas born</search>",
    "<think> I see.</think><answer> Merano</answer>",
]
SETTINGS = {
    "max_steps": 1,
    "save_steps": 1,
    "num_generations": 2,
    "per_device_train_batch_size": 4,
    "max_turns": 1,
}


def lead_conversations(tokenizer, retriever, limits) -> None:
    """Both questions get the same turns: the first answer is right, the second is
    not."""
    scripts = {question["question"]: SCRIPT for question in QUESTIONS}
    trajectories = rollout(
        ScriptedEngine(tokenizer, scripts), tokenizer, retriever, QUESTIONS, limits
    )
    assert [t.searches for t in trajectories] == [1, 1]
    answers = [t.answer for t in trajectories]
    golden = [question["golden_answers"] for question in QUESTIONS]
    assert rewards.accuracy_reward(answers, golden) == [1.0, 0.0]
    assert rewards.format_reward([t.turns for t in trajectories]) == [1.0, 1.0]
    predictions = [
        {"id": question["id"], "prediction": answer}
        for question, answer in zip(QUESTIONS, answers, strict=True)
    ]
    result = scoring.report([scoring.score_answers(predictions, QUESTIONS)])
    assert result["scorers"]["2wiki"]["em"] == 0.5


def train(model_folder: str, retriever) -> None:
    profile = resolve("tiny", {**SETTINGS, "model": model_folder})
    model, tokenizer = models.load(profile.model)
    out = Path("out")
    trainer = KnowledgeGRPOTrainer(
        model,
        args=grpo_config(profile, 1, out / "training", use_cpu=True),
        processing_class=tokenizer,
        train_dataset=corpus.training_set(QUESTIONS),
        retriever=retriever,
        limits=profile.limits,
        reward_funcs=rewards.reward_functions(profile)[0],
        system_prompt=profile.system_prompt,
        folder=out,
        peft_config=models.lora_config(profile),
    )
    trainer.train()
    with (out / "train_log.csv").open(newline="") as lines:
        assert [row["step"] for row in csv.DictReader(lines)] == ["1"]


if __name__ == "__main__":
    assert Path(kr1_utils.__file__).parent == Path(sys.argv[1]), kr1_utils.__file__
    retriever = Retriever.build(PASSAGES)
    lead_conversations(models.load(sys.argv[2])[1], retriever, resolve("tiny").limits)
    train(sys.argv[2], retriever)
