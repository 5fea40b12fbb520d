"""Trained things on disk: a folder with `config.json`, `model.safetensors` and `provenance.json`.
Never pickle, never code.
"""

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import (  # noqa: F401
    is_a,
    make_folder,
    one_sentence,
    plain,
    read_json,
    restore,
    whole_folder,
    write_atomic,
    write_json,
)

PACKAGES = ("torch", "transformers", "diffusers", "mujoco", "numpy")


def save_tensors(path: Path, tensors: dict):
    """Tensors (any nesting flattened by the caller) as safetensors, written atomically."""
    from safetensors.torch import save

    write_atomic(
        Path(path), save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    )


def load_tensors(path: Path) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UserError(
            f"{path} is missing; the folder is not a checkpoint of this kit or was only partly"
            " copied"
        )
    try:
        return load_file(str(path))
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({error}); it is truncated or not a checkpoint,"
            " fetch or train it again"
        ) from error


def versions() -> dict:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def commit() -> str:
    """The checkout's revision, '+' for uncommitted changes; 'unknown' outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        run = lambda *a: subprocess.run(
            ["git", "-C", str(root), *a], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        return run("rev-parse", "--short=12", "HEAD") + (
            "+" if run("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def checksum(path: Path) -> str:
    with one_sentence(path, "read"):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def save_module(
    folder: Path, module, config, provenance: dict | None = None, extra: dict | None = None
):
    """Write `module` with its dataclass `config` and `extra` files (name -> text); the folder
    appears complete or not at all.
    """
    with whole_folder(folder) as staging:
        save_tensors(staging / "model.safetensors", module.state_dict())
        write_json(
            staging / "config.json", {"class": type(module).__name__, **dataclasses.asdict(config)}
        )
        for name, text in (extra or {}).items():
            write_atomic(staging / name, text.encode())
        write_json(
            staging / "provenance.json",
            {**(provenance or {}), "versions": versions(), "commit": commit()},
        )


class Saved:
    """Mixed into a module with a dataclass `config`: it is written to a folder, and read."""

    config_class: type
    config: Any

    def save(self, folder, provenance: dict | None = None) -> None:
        """Write config, weights and provenance to `folder`."""
        save_module(folder, self, self.config, provenance)

    @classmethod
    def load(cls, folder) -> Self:
        """Read what `save` wrote."""
        config = load_config(folder, cls.config_class, cls.__name__)
        return load_model(folder, lambda: cls(config)).eval()  # pyright: ignore[reportCallIssue]


def load_config(folder: Path, config_class, class_name: str):
    """The dataclass config of a checkpoint; UserError for another class's or version's fields."""
    values = read_json(restore(folder) / "config.json")
    found = values.pop("class", None)
    if found != class_name:
        raise UserError(
            f"{folder} holds a '{found}', expected a '{class_name}'; check which folder belongs to"
            " which option"
        )
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    if set(values) - set(fields):
        raise UserError(
            f"{folder}/config.json has unknown fields {sorted(set(values) - set(fields))}; it was"
            " written by another version of the kit"
        )
    for name, field in fields.items():
        usual, absent = field.default, dataclasses.MISSING
        if name not in values and usual is absent and field.default_factory is absent:
            raise UserError(
                f"{folder}/config.json lacks '{name}'; it was truncated or edited, fetch or train"
                " it again"
            )
        known = name in values and usual not in (absent, None)
        if known and not _fits(values[name], usual):
            raise UserError(
                f"{folder}/config.json has {values[name]!r} for '{name}', expected something like"
                f" {usual!r}; it was edited, fetch or train it again"
            )
    return config_class(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


LARGEST_SIZE = 2**31 - 1


def _fits(value, usual) -> bool:
    """Whether a setting from JSON is of the usual one's type and no larger than a size can be."""
    if isinstance(usual, tuple):
        return isinstance(value, list) and all(_fits(item, usual[0]) for item in value if usual)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_a(value, type(usual)) and (not number or abs(value) <= LARGEST_SIZE)


def load_model(folder: Path, build: Callable[[], Any]):
    """The module that `build()` makes, with the weights of a checkpoint folder.

    It is built on the `meta` device first, where nothing is allocated: a config.json that was
    edited, or weights that do not fit it, cost a sentence and not the machine's memory.
    """
    import torch

    try:
        with torch.device("meta"):
            sketch = build()
    except UserError:
        raise
    except Exception as error:  # whatever layers say of sizes that cannot be
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{folder}/config.json describes a model that cannot be built ({said}); it was edited,"
            " fetch or train it again"
        ) from error
    tensors = load_tensors(Path(folder) / "model.safetensors")
    _require_fit(folder, tensors, sketch)
    module = build()
    module.load_state_dict(tensors)
    return module


def _require_fit(folder, tensors: dict, module):
    own = module.state_dict()
    if set(tensors) != set(own) or any(tensors[key].shape != own[key].shape for key in own):
        raise UserError(
            f"{folder}/model.safetensors does not fit its config.json (other names or shapes);"
            " fetch or train it again"
        )


def load_state(folder: Path, module, keep_dtype: bool = False):
    """Load the weights of a checkpoint folder into `module`, exactly; keep_dtype: in the number
    types that they were saved in, not the module's.
    """
    tensors = load_tensors(Path(folder) / "model.safetensors")
    _require_fit(folder, tensors, module)
    if keep_dtype:
        for key, value in module.state_dict(keep_vars=True).items():
            value.data = value.data.to(tensors[key].dtype)
    module.load_state_dict(tensors)
    return module


def digest(arrays: dict) -> str:
    """Twelve digits that tell named tensors, arrays or lists of strings from others, bit by bit."""
    import torch

    found = hashlib.sha256()
    for key, value in sorted(arrays.items()):
        value = value if torch.is_tensor(value) else np.asarray(value)
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        if torch.is_tensor(value):  # as bytes: numpy does not know bfloat16
            value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()[:12]


def fingerprint(module) -> str:
    """Twelve digits that tell a module's weights, in half precision as shipped, from others."""
    found = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        value = value.half() if value.is_floating_point() else value
        found.update(key.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]
