"""Owns trajectories and tables as HTML, without scripts."""

import html
from itertools import groupby
from operator import itemgetter
from os.path import commonprefix

from kr1_utils import protocol


def table_html(rows, header: tuple[str, ...] = ()) -> str:
    """A plain HTML table of (text, text, …) rows."""
    head = "".join(
        f"<th style='text-align:left'>{html.escape(str(c))}</th>" for c in header
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left'>{html.escape(str(c))}</td>" for c in r)
        + "</tr>"
        for r in rows
    )
    table = f"<table>{'<tr>' + head + '</tr>' if header else ''}{body}</table>"
    return table.encode(
        "utf-8", "replace"
    ).decode()  # a notebook with half a surrogate pair can't be saved


_COLORS = {
    "prompt": "#eeeeee",
    "header": "#e6d5ee",
    "model": "#cfe3f7",
    "observation": "#fbe3c4",
}


def conversation_html(trajectory, tokenizer) -> str:
    """A trajectory in boxes: grey the prompt, blue what the model sampled, orange what
    was appended."""
    names = {
        0: ("observation", "appended, mask 0"),
        1: ("model", "model, mask 1"),
        2: ("prompt", "prompt"),
    }
    t, boxes = trajectory, []
    tokens = zip([2] * len(t.prompt_ids) + t.loss_mask, t.prompt_ids + t.completion_ids)
    for who, run in groupby(tokens, key=itemgetter(0)):
        kind, title = names[who]
        text = html.escape(tokenizer.decode([i for _, i in run]))
        boxes.append(
            f"<div style='background:{_COLORS[kind]};color:#111;padding:4px 8px;"
            "margin:2px 0;border-radius:4px;white-space:pre-wrap;"
            "font-family:monospace;font-size:12px' "
            f"title='{title}'><b>{title}</b>  {text}</div>"
        )
    return "".join(boxes)


def microscope_html(
    trajectory,
    tokenizer,
    logprobs: list[float] | None = None,
    advantage: float | None = None,
    tokens_in_batch: int | None = None,
) -> str:
    """A trajectory token by token, coloured by who wrote it; underlined is what the
    loss counts (mask 1).

    Hovering over a token shows its id and mask and, where they are given, the rest.
    Without scripts.

    Args:
        logprobs: (T,) of the completion's tokens; the trajectory's own where it has
            some.
        advantage: of this trajectory in its group.
        tokens_in_batch: sampled tokens over which the loss is averaged. At the first
            update of a batch the ratio is 1, and a sampled token adds −advantage /
            tokens_in_batch to it.
    """
    t, chat = trajectory, protocol.ChatFormat.from_tokenizer(tokenizer)
    ids, logprobs = t.completion_ids, logprobs or t.logprobs
    header, opening = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (chat.before_user, chat.after_user)
    )
    who, at = ["prompt"] * len(t.prompt_ids), 0
    while at < len(
        ids
    ):  # a turn, the token that ends it (whose, only the mask knows), and a message
        end = next(
            (
                i
                for i in range(at, len(ids))
                if ids[i] == chat.end_of_turn
                and ids[i + 1 : i + len(header)] in (header[:-1], [])
            ),
            len(ids),
        )
        who += ["model"] * (end - at) + [
            "model" if m else "header" for m in t.loss_mask[end : end + 1]
        ]
        at = end + 1
        first = len(commonprefix([header, ids[at:]]))
        end = next(
            (i for i in range(at, len(ids)) if ids[i : i + len(opening)] == opening),
            len(ids),
        )
        who += ["header"] * first + ["observation"] * (end - at - first)
        who += ["header"] * len(ids[end : end + len(opening)])
        at = end + len(opening)
    spans = [
        f"<span style='background:{color}'>{name}</span>"
        for name, color in _COLORS.items()
    ]
    spans = ["written by ", " · ".join(spans), "; <u>underlined</u>: mask 1<br>"]
    masks = [0] * len(
        t.prompt_ids
    ) + t.loss_mask  # who wrote it is read off the ids: the two may disagree
    for i, (token, writer, mask) in enumerate(
        zip(t.prompt_ids + ids, who, masks, strict=True)
    ):
        at, told = i - len(t.prompt_ids), [writer, f"id {token}", f"mask {mask}"]
        if mask:
            told += [f"log-probability {logprobs[at]:.3f}"] if logprobs else []
            told += [f"advantage {advantage:+.2f}"] if advantage is not None else []
            told += (
                [f"adds {-advantage / tokens_in_batch:+.1e} to the loss"]
                if advantage is not None and tokens_in_batch
                else []
            )
        text, tag = html.escape(tokenizer.decode([token])), "u" if mask else "span"
        spans.append(
            f"<{tag} style='background:{_COLORS[writer]}' title='{', '.join(told)}'>"
            f"{text.replace(chr(10), '↵')}</{tag}> "
        )
    return (
        "<div style='font-family:monospace;font-size:12px;line-height:1.9;"
        "color:#111;background:#fff'>"
        f"{''.join(spans)}</div>"
    )


def side_by_side_html(left: str, right: str, titles: tuple[str, str]) -> str:
    """Two pieces of HTML in two columns."""
    cells = "".join(
        "<td style='vertical-align:top;text-align:left;width:50%'>"
        f"<b>{html.escape(t)}</b>{part}</td>"
        for t, part in zip(titles, (left, right))
    )
    return f"<table style='width:100%'><tr>{cells}</tr></table>"
