"""Owns optional dependencies: what is missing says so when it is used, not before.

`pip install kr1-utils` brings what searching, the conversation, rewards and scores need.
Every other module can be imported without its libraries too:

    try:
        import torch
    except ImportError:
        torch = missing("train")
"""


class _Missing(type):
    """A stand-in for a module, a class or a function: to call it is an ImportError."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *args, **kwargs):
        raise ImportError(cls.sentence)


def missing(extra: str) -> type:
    """A stand-in for what the extra `extra` would install.

    It can be subclassed and named in annotations. Calling it, an attribute of it or a
    subclass of it raises an ImportError that names the extra.
    """
    sentence = f"This needs the extra [{extra}]: pip install 'kr1-utils[{extra}]'."
    return _Missing("Missing", (), {"sentence": sentence})
