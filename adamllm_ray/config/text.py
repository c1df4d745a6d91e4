"""Configuration as text: YAML in and out, overrides, a validation error as sentences. Knows no section by name."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from adamllm_ray.errors import ConfigError

_USER_INFO = re.compile(r"://[^/\s]*@")


class _Loader(yaml.SafeLoader):
    """The safe loader, with 1e-5 read as a number (YAML 1.1 wants 1.0e-5), without aliases and tags.

    Ten lines of aliases can unfold to gigabytes; a tag on a value that it does not fit (``!!int ""``) ends even the
    safe loader with any exception. No configuration here needs either.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        mark: Any = event.start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed", mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, f"tags ({event.tag}) are not allowed", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around a text that ``_Loader`` would read as a number, such as a name 1e5."""


_EXPONENT = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(*_EXPONENT)  # type: ignore[no-untyped-call]
_Dumper.add_implicit_resolver(*_EXPONENT)  # type: ignore[no-untyped-call]


def parse_yaml(text: str, where: str) -> Any:
    """Plain data out of YAML text. Raises ConfigError that names ``where`` it stood."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # no such date; 1:0:...:0.0 for ever
        raise ConfigError(f"{where} is not valid YAML: {error}") from error


def format_yaml(tree: Any) -> str:
    """Plain data as YAML text that ``parse_yaml`` reads as the same data, keys in their order."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
    return text


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one ``key.sub=value`` (the value is YAML) in a nested dictionary. Raises ConfigError."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set wants key=value, got {override!r}; for example --set training.epochs=2")
    *parents, leaf = key.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {key}: '{parent}' is a value, not a section")
        node = child
    node[leaf] = parse_yaml(value, f"--set {key}")


def refuse_secrets(tree: Any, key: str = "") -> None:
    """Raise ConfigError, without repeating it, for a URL with a user or password: run folders keep configurations."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            refuse_secrets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            refuse_secrets(value, f"{key}.{number}")
    elif isinstance(tree, str) and _USER_INFO.search(tree):
        raise ConfigError(
            f"the configuration is wrong:\n  {key}: a URL or path with a user or password in it; give keys by the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), ~/.aws or a role"
        )


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Every problem of a validation, one per line: the key, what is wrong with it, and the nearest known key."""
    lines = ["the configuration is wrong:"]
    for problem in error.errors():
        location = problem["loc"]
        key = ".".join(map(str, location))
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {key}: unknown key{_nearest(location, root)}")
        elif problem["type"] == "missing":
            lines.append(f"  {key}: is required")
        else:
            shown = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
            lines.append(f"  {key or 'run'}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return "\n".join(lines)


def _nearest(location: tuple[int | str, ...], section: type[BaseModel]) -> str:
    """'; did you mean X?' from the fields of the section where the unknown key stands."""
    for name in location[:-1]:
        field = section.model_fields.get(str(name)) if isinstance(name, str) else None
        if field is not None:
            section = next(
                (kind for kind in (field.annotation, *_inner(field.annotation)) if _is_section(kind)), section
            )
    known = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known keys: {', '.join(known)}"


def _inner(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
