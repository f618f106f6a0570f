"""The GPU memory that a run will need: `python -m kr1_utils.memory --profile 7b
--gpu-gib 80` calls this."""

import argparse
import json
import sys

from kr1_utils.memory import forecast, show
from kr1_utils.profiles import resolve


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kr1_utils.memory", description=__doc__
    )
    parser.add_argument("--profile", default="7b")
    for name, value in (
        ("--response-tokens", 0),
        ("--gpu-gib", 80),
        ("--num-gpus", 1),
        ("--zero", 0),
    ):
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    try:
        result = forecast(
            resolve(args.profile),
            args.response_tokens,
            args.gpu_gib,
            args.num_gpus,
            args.zero,
        )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(
        json.dumps({k: v for k, v in result.items() if k != "timeline"})
        if args.json
        else show(result)
    )
    return 0
