"""Real vLLM, its CPU build, in the environment of tests/vllm_env.sh: `-m vllm`."""

import functools
import os
import socket
import subprocess
import sys

import pandas as pd
import pytest
import torch
from helpers import gap_of_two_best
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient

from kr1_utils import corpus, hub, models, rewards, trainer
from kr1_utils.agent import rollout
from kr1_utils.engines import ServerEngine, TransformersEngine, VLLMEngine
from kr1_utils.files import REPO
from kr1_utils.profiles import Limits, resolve
from kr1_utils.protocol import ChatFormat
from kr1_utils.retriever import Retriever

pytestmark = pytest.mark.vllm
PACK = (REPO / os.environ.get("KR1_2WIKI", "../shared/data/2wiki")).resolve()
ADAPTER = REPO / "data" / "reference" / "tiny" / "seed42" / "checkpoint"
# How far a token's log-probability may be from the training model's, where both compute
# in float32. In bfloat16 rounding alone makes single tokens differ by 0.2 to 0.6.
MEAN, WORST = 1e-5, 1e-3


@pytest.fixture(scope="session", autouse=True)
def little_memory():
    """1 GiB for keys and values; several engines live in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


def same_conversations(
    model, tokenizer, retriever, questions, limits, system_prompt, folder
):
    """Lead greedy conversations with both engines: those that part must part at a tie.

    Returns:
        how many are the same token for token, vLLM's trajectories, and the tokens that
        vLLM computed as a multiple of the floor.
    """
    chat = ChatFormat.from_tokenizer(tokenizer)
    vllm = VLLMEngine.open(
        str(folder),
        tokenizer,
        chat.end_of_turn,
        0.0,
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=64,
        max_model_len=min(2048, model.config.max_position_embeddings),
    )
    asked = (tokenizer, retriever, questions, limits, system_prompt)
    theirs = rollout(vllm, *asked)
    ours = rollout(
        TransformersEngine(model, tokenizer, chat.end_of_turn, 0.0, batch_size=25),
        *asked,
    )
    for a, b in zip(ours, theirs):
        if a.completion_ids != b.completion_ids:
            gap = gap_of_two_best(
                model, a.prompt_ids, a.completion_ids, b.completion_ids
            )
            assert gap < 1e-3
    floor = sum(len(t.prompt_ids) + len(t.completion_ids) for t in theirs)
    assert all(len(t.logprobs) == len(t.completion_ids) for t in theirs)
    assert all(lp <= 0 for t in theirs for lp in t.logprobs)
    same = sum(a.completion_ids == b.completion_ids for a, b in zip(ours, theirs))
    return same, theirs, vllm.computed / floor


def test_both_engines_lead_the_same_conversations_with_tiny_lm(
    retriever, questions, tmp_path
):
    model, tokenizer = models.load("data/tiny-lm", ADAPTER)
    model = model.merge_and_unload()
    folder = models.save_adapter(model, tokenizer, tmp_path / "merged")
    profile = resolve("tiny")
    same, trajectories, _ = same_conversations(
        model,
        tokenizer,
        retriever,
        questions["test"][:50],
        profile.limits,
        profile.system_prompt,
        folder,
    )
    assert same >= 48
    assert (
        sum(t.searches for t in trajectories) > 80
        and sum(t.stop == "answer" for t in trajectories) > 40
    )


def test_both_engines_lead_the_same_conversations_with_smollm2():
    folder = models.locate(hub.SMOLLM2)
    model, tokenizer = models.load(folder)
    if PACK.is_dir():
        questions = corpus.load_questions(PACK / "questions.jsonl")[:50]
        passages = corpus.load_passages(PACK / "passages.jsonl")
    else:
        questions = corpus.load_questions(REPO / "data" / "miniwiki" / "test.jsonl")[
            :50
        ]
        passages = corpus.load_passages(REPO / "data" / "miniwiki" / "passages.jsonl")
    limits = Limits(
        max_turns=1,
        top_k=2,
        max_turn_tokens=48,
        max_observation_tokens=160,
        max_response_tokens=280,
    )
    same, trajectories, computed = same_conversations(
        model,
        tokenizer,
        Retriever.build(passages),
        questions,
        limits,
        "Answer the question.",
        folder,
    )
    print(same, "the same;", f"vLLM computed {computed:.2f} times the floor")
    assert same >= 48 and computed < 1.15


# --- on a server of its own ---


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a vLLM server with tiny-lm, started as `trl vllm-serve` does (the
    CPU build lacks its command), but for the transfer of weights, which takes GPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(REPO / "data" / "tiny-lm"),
        "--dtype=float32",
        "--enforce-eager",
        "--max-model-len=1024",
        "--logprobs-mode=processed_logprobs",
        "--max-logprobs=-1",
        f"--port={port}",
    ]
    environment = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=environment) as serving,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            VLLMClient(url, connection_timeout=300)
            yield url
        finally:
            serving.terminate()


def test_a_server_leads_the_same_conversations(server, tiny, retriever, questions):
    model, tokenizer = tiny
    profile = resolve("tiny")
    end = ChatFormat.from_tokenizer(tokenizer).end_of_turn
    asked = (
        tokenizer,
        retriever,
        questions["test"][:50],
        profile.limits,
        profile.system_prompt,
    )
    theirs = rollout(ServerEngine(VLLMClient(server), tokenizer, end, 0.0), *asked)
    ours = rollout(TransformersEngine(model, tokenizer, end, 0.0), *asked)
    assert sum(a.completion_ids == b.completion_ids for a, b in zip(ours, theirs)) >= 48
    assert all(
        len(t.logprobs) == len(t.completion_ids) and max(t.logprobs) <= 0
        for t in theirs
    )
    assert sum(t.searches for t in theirs) >= 50


def test_two_processes_train_on_one_server_with_turns_of_their_own(server, tmp_path):
    config = str(REPO / "data" / "accelerate" / "ddp.yaml")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            config,
            "--num_processes=2",
            "--main_process_port=0",
            str(REPO / "tests" / "train_worker.py"),
            str(tmp_path),
            "server",
        ],
        env={
            **os.environ,
            "HOW": "ddp",
            "SERVER": server,
            "OMP_NUM_THREADS": "1",
            # The environment is kept, and may have been made for another clone.
            "PYTHONPATH": str(REPO),
        },
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = pd.read_csv(tmp_path / "server_ddp" / "train_log.csv")
    assert log["step"].tolist() == [1, 2, 3] and (log["searches"] > 0).all()


# --- training with vLLM in the same process ---


class Watched(trainer.KnowledgeGRPOTrainer):
    """Keeps, for each step, how far vLLM's log-probabilities are from the training
    model's."""

    def _generate_and_score_completions(self, inputs):
        out = super()._generate_and_score_completions(inputs)
        mask = (out["completion_mask"] * out["tool_mask"]).bool()
        gap = (out["sampling_per_token_logps"] - out["old_per_token_logps"])[mask].abs()
        self.gaps = [*getattr(self, "gaps", []), (gap.mean().item(), gap.max().item())]
        return out


@pytest.fixture(scope="module")
def float32_vllm():
    """TRL leaves the type to vLLM, which would compute in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        in_float32 = functools.partial(vllm_generation.LLM, dtype="float32")
        patch.setattr(vllm_generation, "LLM", in_float32)
        yield


@pytest.fixture(scope="module")
def trained(float32_vllm, questions, retriever, tmp_path_factory):
    """(trainer after 3 steps, what vLLM was told to do)."""
    folder = tmp_path_factory.mktemp("vllm")
    changes = {"max_steps": 3, "per_device_train_batch_size": 32, "warmup_steps": 0}
    profile = resolve("tiny", changes)
    model, tokenizer = models.load("data/tiny-lm")
    config = trainer.grpo_config(
        profile,
        42,
        folder / "state",
        use_vllm=True,
        vllm_mode="colocate",
        use_cpu=True,
        vllm_max_model_length=1024,
        vllm_gpu_memory_utilization=0.3,
    )
    run = Watched(
        model,
        retriever=retriever,
        limits=profile.limits,
        system_prompt=profile.system_prompt,
        folder=folder,
        args=config,
        processing_class=tokenizer,
        peft_config=models.lora_config(profile),
        train_dataset=corpus.training_set(questions["train"][:200]),
        reward_funcs=rewards.reward_functions(profile)[0],
    )
    vllm = run.vllm_generation
    told = []
    push = vllm.sync_weights
    generate = vllm.llm.generate

    def push_and_tell():
        told.append("push")
        push()

    def generate_and_tell(*args, **kwargs):
        told.append("generate")
        return generate(*args, **kwargs)

    # A CPU has no sleep mode: note when vLLM would sleep and wake.
    vllm.enable_sleep_mode = True
    vllm._llm_weights_sleeping = True
    vllm.llm.wake_up = lambda tags: told.append(f"wake {tags[0]}")
    vllm.llm.sleep = lambda level: told.append("sleep")
    vllm.sync_weights = push_and_tell
    vllm.llm.generate = generate_and_tell
    run.train()
    return run, told


def test_weights_are_pushed_once_per_rollout_whatever_its_turns(trained):
    run, told = trained
    steps = " ".join(told).split("sleep")[:-1]
    assert len(steps) == told.count("push") == run.state.global_step == 3
    for step in steps:
        assert step.split()[:5] == ["push", "wake", "weights", "wake", "kv_cache"]
        assert set(step.split()[5:]) == {"generate"} and step.count("generate") >= 2


def test_vllm_and_the_training_model_agree_after_every_step(trained):
    run, _ = trained
    assert len(run.gaps) == 3
    for mean, worst in run.gaps:
        assert mean < MEAN and worst < WORST


def test_vllm_and_a_bfloat16_model_do_not_drift_apart_over_20_pushes(
    trained, questions
):
    run, _ = trained
    run.model.to(torch.bfloat16)
    base = {n: p.clone() for n, p in run.model.named_parameters() if "lora_" not in n}
    asked = questions["test"][:16]
    gaps = []
    for _ in range(20):
        with torch.no_grad():
            for name, parameter in run.model.named_parameters():
                # A new adapter, as after an optimizer step.
                if "lora_B" in name:
                    parameter.add_(torch.randn_like(parameter) * 1e-3)
        run.vllm_generation.sync_weights()
        with run.engine() as engine:
            made = rollout(
                engine,
                run.processing_class,
                run.retriever,
                asked,
                run.limits,
                run.system_prompt,
            )
        gaps.append(gap_of(run.model, made))
    assert all(
        torch.equal(base[n], p) for n, p in run.model.named_parameters() if n in base
    )
    first, last = sum(gaps[:5]) / 5, sum(gaps[-5:]) / 5
    print("mean gap over the first and the last five pushes:", first, last)
    assert last < 2 * first and last < 0.05


def gap_of(model, trajectories):
    """Mean difference of log-probabilities: the engine's and those of a forward pass of
    `model`."""
    gaps = []
    for t in trajectories:
        ids = torch.tensor([t.prompt_ids + t.completion_ids])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].float().log_softmax(-1)
        said = logps.gather(1, ids[0, 1:, None])[len(t.prompt_ids) - 1 :, 0]
        mask = torch.tensor(t.loss_mask).bool()
        gaps.append((said - torch.tensor(t.logprobs))[mask].abs())
    return torch.cat(gaps).mean().item()
