"""Owns optional dependencies: what is missing says so when it is used, not before.

`pip install kr1-utils` brings what searching, the conversation, rewards and scores
need. Every other module can be imported without its libraries too:

    try:
        import torch
    except ImportError:
        torch = missing("train")
"""


class _Missing(type):
    """Takes the place of a module, a class or a function that is not installed."""

    def __getattr__(cls, name: str):
        # Python asks for special names by itself, and must learn that there are none.
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *args, **kwargs):
        raise ImportError(cls.sentence)


def missing(extra: str) -> type:
    """What a name is bound to when the library of the extra `extra` is not installed.

    It can be subclassed and named in annotations. To call it, one of its attributes or
    a subclass of it raises an ImportError that names the extra.
    """
    sentence = f"This needs the extra [{extra}]: pip install 'kr1-utils[{extra}]'."
    return _Missing("Missing", (), {"sentence": sentence})
