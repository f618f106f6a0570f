"""Owns TRL's own tool loop over our questions, to measure it beside ours."""

import copy
import functools
import tempfile
from collections.abc import Callable

from kr1_utils import protocol
from kr1_utils.agent import Trajectory
from kr1_utils.extras import missing
from kr1_utils.profiles import Profile
from kr1_utils.protocol import ChatFormat

try:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
except ImportError:
    torch = missing("train")
    Dataset = GRPOConfig = GRPOTrainer = missing("train")

# TRL's template must show calls and results, and only ever append. This one writes them
# as ours does.
TOOL_TEMPLATE = (
    "{% for m in messages %}"
    "<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{% if m.role == 'tool' %}<context>\n{{ m.content }}\n</context>"
    "{% else %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}"
    "<search>{{ c.function | tojson }}</search>"
    "{% endfor %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# How TRL's tool loop reads our turns: the text in <search> is a call of `search`.
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


def trl_tools(
    model, tokenizer, retriever, questions: list[dict], profile: Profile
) -> Callable[[], tuple[list[Trajectory], int]]:
    """TRL's own tool loop over these questions, greedy, ready to be called once.

    Returns:
        a function without arguments. It returns one trajectory per question, with ids
        and as many lists of passages as there were searches, and how many tokens went
        through the model.
    """
    tokenizer_for_tools = copy.deepcopy(tokenizer)
    tokenizer_for_tools.chat_template = TOOL_TEMPLATE
    tokenizer_for_tools.response_template = RESPONSE_TEMPLATE
    model = copy.deepcopy(model)
    end_turns_at_closing_tags(model, tokenizer_for_tools)
    search = search_tool(tokenizer, retriever, profile)
    prompts = [
        protocol.messages(question["question"], profile.system_prompt)
        for question in questions
    ]
    trainer = make_trainer(model, tokenizer_for_tools, search, prompts, profile)
    # TRL sets these when a training step begins; only its generation is run here.
    trainer._sync_tool_dicts = [{"search": search}] * len(prompts)
    trainer._async_tool_dicts = [{}] * len(prompts)
    computed = count_tokens(trainer.model)

    def way() -> tuple[list[Trajectory], int]:
        trainer.model.eval()
        prompt_ids, completion_ids, _, messages, *_ = trainer._generate(prompts)
        trajectories = []
        for question, prompt, completion, said in zip(
            questions, prompt_ids, completion_ids, messages
        ):
            searches = [[] for message in said if message["role"] == "tool"]
            trajectories.append(
                Trajectory(question, prompt, completion, passages=searches)
            )
        return trajectories, sum(computed)

    return way


def end_turns_at_closing_tags(model, tokenizer) -> None:
    """Have `generate` end a turn at </search> or </answer>, so that none runs on.

    TRL ends a turn at end-of-sequence tokens alone. Closing tags that are one token
    are made such tokens; for others, `generate` is given them as stop strings.
    """
    closing_ids = []
    for tag in protocol.CLOSING:
        token = tokenizer.convert_tokens_to_ids(tag)
        if tokenizer.decode([token]) == tag:
            closing_ids.append(token)
    if closing_ids:
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *closing_ids]
        # What TRL appends to a turn begins right behind this token.
        tokenizer.eos_token = protocol.CLOSING[0]
    else:
        model.generate = functools.partial(
            model.generate, tokenizer=tokenizer, stop_strings=list(protocol.CLOSING)
        )


def search_tool(tokenizer, retriever, profile: Profile) -> Callable[[str], str]:
    """The tool that TRL calls; its signature and docstring go into the prompt."""
    chat = ChatFormat.from_tokenizer(tokenizer)

    def search(query: str) -> str:
        """Search Wikipedia.

        Args:
            query: what to look for.
        """
        passages = retriever.search([query.strip()], profile.limits.top_k)[0]
        # Cut as ours is: TRL ends a conversation whose observation is too long for what
        # is left.
        ids = protocol.observation_ids(
            tokenizer, chat, passages, profile.limits.max_observation_tokens
        )
        text = tokenizer.decode(ids)
        return text.split("<context>\n")[1].split("\n</context>")[0]

    return search


def make_trainer(
    model, tokenizer, search: Callable[[str], str], prompts: list, profile: Profile
) -> GRPOTrainer:
    """TRL's trainer with the search tool and the profile's limits; nothing is
    trained."""
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
    return GRPOTrainer(
        model,
        lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
        tools=[search],
    )


def count_tokens(model) -> list[int]:
    """A list that grows by the tokens of every pass of the model."""
    computed: list[int] = []

    def count(module, args, kwargs) -> None:
        computed.append(kwargs["input_ids"].numel())

    model.register_forward_pre_hook(count, with_kwargs=True)
    return computed
