"""Owns asking: a trained agent, opened with all it needs, and its replies."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kr1_utils import models
from kr1_utils.agent import SearchesPassages, Trajectory, rollout
from kr1_utils.corpus import locate_files
from kr1_utils.engines.base import Engine
from kr1_utils.engines.transformers import TransformersEngine
from kr1_utils.files import display_path, expand_home, in_repository
from kr1_utils.notebook import index_folder
from kr1_utils.profiles import Limits, Profile, resolve
from kr1_utils.protocol import ChatFormat
from kr1_utils.retriever.build import fingerprint
from kr1_utils.retriever.opening import open_retriever
from kr1_utils.retriever.search import Retriever
from kr1_utils.runs import SHIPPED_PROFILE, Run, find_run, read_run
from kr1_utils.transcript import transcript


@dataclass(frozen=True)
class Reply:
    """What came of one question. It shows itself: in a notebook as HTML, else as
    text."""

    trajectory: Trajectory

    @property
    def answer(self) -> str | None:
        """The answer; None if there is none."""
        return self.trajectory.answer

    def to_record(self) -> dict:
        """The row of it in trajectories.jsonl, and the passages of each search."""
        passages = self.trajectory.passages
        return {**self.trajectory.to_record(), "passages": passages}

    def __repr__(self) -> str:
        return transcript(self.trajectory)

    def _repr_html_(self) -> str:
        # Here, for a terminal needs neither it nor pandas.
        from kr1_utils.views import reply_html

        return reply_html(self.trajectory)


@dataclass(frozen=True)
class Agent:
    """A model that searches, and what it searches; answers are greedy.

    Attributes:
        about: in one line, which model it is and over which passages.
    """

    engine: Engine
    tokenizer: object
    retriever: SearchesPassages
    limits: Limits
    system_prompt: str
    about: str = ""

    def ask(
        self, question: str, on_turn: Callable[[Trajectory], None] | None = None
    ) -> Reply:
        """Lead one conversation.

        Args:
            on_turn: called after each turn but the last with the conversation so far.

        Raises:
            ValueError: if the question is blank.
        """
        if not question.strip():
            raise ValueError("The question is blank: ask something.")

        def hand_over(_: int, unfinished: list[Trajectory]) -> None:
            for trajectory in unfinished:
                on_turn(trajectory)

        trajectories = rollout(
            self.engine,
            self.tokenizer,
            self.retriever,
            [{"question": question}],
            self.limits,
            self.system_prompt,
            hand_over if on_turn else None,
        )
        return Reply(trajectories[0])


def open_agent(
    profile: str = "",
    run: str | os.PathLike = "",
    model: str = "",
    adapter: str | os.PathLike = "",
    data: str | os.PathLike = "",
    index: str | os.PathLike = "",
    retriever: str = "",
) -> Agent:
    """The trained agent of a run, or any model, ready to be asked.

    Args:
        profile: whose limits, system prompt and corpus it has; "" is the run's, or
            `tiny`.
        run: the folder of a run; "" is the profile's in data/runs, and for `tiny`,
            until there is one, the shipped run.
        model: a folder, GGUF file or hub id instead of the run's; with the adapter of
            `adapter` or `run`, if one is named, else without.
        adapter: the folder of an adapter instead of the run's.
        data: a file of passages, or a folder as DATA in notebooks; "" is the run's.
        index: a folder in which to keep the index of `data`, or where it lies; "" takes
            the run's if it is over these passages, or makes one that goes with the
            agent.
        retriever: the URL of a served index instead (see `kr1 serve`); "" is the
            profile's.

    Raises:
        FileNotFoundError: if one of these is not there.
        ValueError: for an unknown profile, and for a model, an adapter, passages or an
            index that do not serve.
        RuntimeError: if the served index gives no answer.
    """
    setup = _locate(profile, run, model, adapter)
    if retriever:
        setup = replace(setup, profile=replace(setup.profile, retriever=retriever))
    # In this order, a wrong name is reported before anything is loaded, and a wrong
    # model before an index is made, which takes longest.
    passages = _locate_passages(setup, data)
    network, tokenizer = models.load_profile(setup.profile, setup.adapter)
    shelf = _open_retriever(setup, passages, index)
    chat = ChatFormat.from_tokenizer(tokenizer)
    engine = TransformersEngine(network, tokenizer, chat.end_of_turn, temperature=0)
    return Agent(
        engine,
        tokenizer,
        shelf,
        setup.profile.limits,
        setup.profile.system_prompt,
        _about(setup, passages),
    )


@dataclass(frozen=True)
class _Setup:
    """What was asked for, found.

    Attributes:
        profile: with the model to load as its `model`.
        adapter: its folder; "" is none.
        run: where the weights or the settings come from; None for a bare profile.
    """

    profile: Profile
    adapter: str
    run: Run | None


def _locate(
    profile: str, run: str | os.PathLike, model: str, adapter: str | os.PathLike
) -> _Setup:
    if run:
        found = read_run(run, profile)
    elif model or adapter:
        # Weights are named, so no run is needed.
        settings = resolve(profile or SHIPPED_PROFILE)
        named = replace(settings, model=model or settings.model, adapter="")
        return _Setup(named, os.fspath(adapter), None)
    else:
        found = find_run(profile)
    trained = str(found.checkpoint.absolute())
    settings = replace(found.profile, adapter="")
    if found.has_adapter:
        settings = replace(settings, model=model or settings.model)
        return _Setup(settings, os.fspath(adapter) or trained, found)
    if adapter or model:
        raise ValueError(
            f"All weights were trained in {display_path(found.folder)}: leave out"
            " --model and --adapter, or --run."
        )
    return _Setup(replace(settings, model=trained), "", found)


def _locate_passages(setup: _Setup, data: str | os.PathLike) -> Path | None:
    """The file of passages, of the user or of the run; None if an index is served."""
    if setup.profile.retriever:
        return None
    named = expand_home(data, "DATA")
    if named and not Path(named).exists() and not in_repository(named).exists():
        raise FileNotFoundError(f"DATA={named}: there is no such file or folder.")
    if named and Path(named).is_file():
        return Path(named)
    if not named and setup.run:
        named = setup.run.data
    return locate_files(setup.profile, named)["passages"]


def _open_retriever(
    setup: _Setup, passages: Path | None, index: str | os.PathLike
) -> SearchesPassages:
    if passages is None:
        return open_retriever(setup.profile.retriever, None)
    if index:
        return Retriever.open_or_build(passages, expand_home(index, "The index"))
    if setup.run:
        # It may be over other passages, or there may be none.
        with contextlib.suppress(FileNotFoundError, ValueError):
            own = index_folder(setup.run.folder)
            return Retriever.open(own, corpus=fingerprint(passages))
    return Retriever.build(passages)


def _about(setup: _Setup, passages: Path | None) -> str:
    model = setup.profile.model
    if Path(model).is_absolute():
        model = display_path(model)
    if setup.adapter:
        model = f"{model} with {display_path(setup.adapter)}"
    where = display_path(passages) if passages else setup.profile.retriever
    return f"{model}, searching {where}"
