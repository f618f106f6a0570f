"""Owns TRL's own tool loop over our questions, to measure it beside ours."""

import copy
import functools
import tempfile

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from kr1_utils import protocol
from kr1_utils.agent import Trajectory
from kr1_utils.profiles import Profile
from kr1_utils.protocol import ChatFormat

# How TRL's tool loop reads our turns; its template must show calls and results, and
# append only.
TOOL_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role"
    " }}\n{% if m.role == 'tool' %}<context>\n{{ m.content }}\n</context>{% else %}{{"
    " m.content }}{% endif %}{% for c in m.tool_calls or [] %}<search>{{ c.function |"
    " tojson }}</search>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt"
    " %}<|im_start|>assistant\n{% endif %}"
)

CALL = {
    "type": "function",
    "function": {"name": "search", "arguments": {"query": "{content}"}},
}

RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {
            "open": "<think>",
            "close_pattern": r"</think>\s*",
            "content": "text",
        },
        "tool_calls": {
            "open": "<search>",
            "close_pattern": r"</search>\s*",
            "repeats": True,
            "content": "text",
            "transform": CALL,
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*|$", "content": "text"},
    },
}


def trl_tools(model, tokenizer, retriever, questions: list[dict], profile: Profile):
    """TRL's own tool loop over the same questions, ready to be called.

    TRL ends a turn at end-of-sequence tokens alone. So that no turn runs on, closing
    tags that are one token are made such tokens; for others, `generate` is given them
    as stop strings."""

    def search(query: str) -> str:
        """Search Wikipedia.

        Args:
            query: what to look for.
        """
        found = retriever.search([query.strip()], profile.limits.top_k)[0]
        # Cut as ours is: TRL ends a conversation whose observation is too long for what
        # is left.
        ids = protocol.observation_ids(
            plain, chat, found, profile.limits.max_observation_tokens
        )
        return plain.decode(ids).split("<context>\n")[1].split("\n</context>")[0]

    plain, chat, tokenizer = (
        tokenizer,
        ChatFormat.from_tokenizer(tokenizer),
        copy.deepcopy(tokenizer),
    )
    tokenizer.chat_template, tokenizer.response_template = (
        TOOL_TEMPLATE,
        RESPONSE_TEMPLATE,
    )
    closing = [tokenizer.convert_tokens_to_ids(tag) for tag in protocol.CLOSING]
    closing = [
        i for i, tag in zip(closing, protocol.CLOSING) if tokenizer.decode([i]) == tag
    ]
    model = copy.deepcopy(model)
    if closing:
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *closing]
        tokenizer.eos_token = protocol.CLOSING[
            0
        ]  # what TRL appends begins right behind it
    else:
        model.generate = functools.partial(
            model.generate, tokenizer=tokenizer, stop_strings=list(protocol.CLOSING)
        )
    prompts = [
        protocol.messages(q["question"], profile.system_prompt) for q in questions
    ]
    config = GRPOConfig(
        output_dir=tempfile.gettempdir(),
        report_to="none",
        bf16=False,
        num_generations=2,
        per_device_train_batch_size=2,
        use_cpu=not torch.cuda.is_available(),
        max_completion_length=profile.limits.max_response_tokens,
        max_tool_calling_iterations=profile.limits.max_turns,
        generation_kwargs={
            "do_sample": False,
            "max_new_tokens": profile.limits.max_turn_tokens,
        },
    )
    trainer = GRPOTrainer(
        model,
        lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
        processing_class=tokenizer,
        tools=[search],
    )
    # TRL sets these at the head of a training step, of which only the generation is
    # wanted here.
    trainer._sync_tool_dicts = [{"search": search}] * len(prompts)
    trainer._async_tool_dicts = [{}] * len(prompts)
    computed = 0

    def count(module, args, kwargs):
        nonlocal computed
        computed += kwargs["input_ids"].numel()

    trainer.model.register_forward_pre_hook(count, with_kwargs=True)

    def way():
        trainer.model.eval()
        prompt_ids, completion_ids, _, messages, *_ = trainer._generate(prompts)
        searches = [[[] for m in said if m["role"] == "tool"] for said in messages]
        return [
            Trajectory(q, p, c, passages=s)
            for q, p, c, s in zip(questions, prompt_ids, completion_ids, searches)
        ], computed

    return way
