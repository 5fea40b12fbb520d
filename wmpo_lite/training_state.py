"""Checkpoints of an unfinished training, and going on from one exactly: weights, optimizer,
average, and what the training was made from.
"""

from pathlib import Path

import torch

from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.common.errors import UserError


def trainable(module) -> dict:
    """The parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def origin(module, folder, **settings) -> dict:
    """What a training is made from, to be kept with its checkpoints: settings, the weights it
    begins with (buffers that are not saved included) and which of them learn.
    """
    if folder is None:
        return {}
    weights = {**module.state_dict(), **dict(module.named_buffers())}
    return checkpoint.plain(
        {
            **settings,
            "initial weights": checkpoint.digest(weights),
            "trained parameters": sorted(trainable(module)),
        }
    )


def check_origin(folder, found: dict | None, made: dict):
    """Refuse to go on with a training that was made from something else; more steps are fine where
    the learning rate does not fall towards the last.
    """
    if not isinstance(found, dict):
        raise UserError(
            f"{folder} holds a training that does not say what it was made from (an older version"
            " of the kit wrote it); choose another folder or remove it"
        )
    if found.get("trained parameters") != made["trained parameters"]:
        others = sorted(
            set(map(str, found.get("trained parameters") or [])) ^ set(made["trained parameters"])
        ) or ["in another order"]
        raise UserError(
            f"{folder} holds a training of other parameters"
            f" ({others[0]}{f' and {len(others) - 1} more' if others[1:] else ''}); choose another"
            " folder or remove it"
        )
    changed = sorted(key for key in found.keys() | made.keys() if found.get(key) != made.get(key))
    if (
        changed == ["steps"]
        and isinstance(found["steps"], int)
        and made["steps"] > found["steps"]
        and not made["decay"]
    ):
        return
    if changed:
        what = ", ".join(f"{key}: {found.get(key)} there, {made.get(key)} here" for key in changed)
        raise UserError(
            f"{folder} holds a training that was made from something else ({what}); choose another"
            " folder or remove it"
        )


def resume(folder, module, optimizer, average=None, made=None, extra=None) -> tuple[int, list]:
    """Go on from a folder's checkpoint, if any: (steps done, records); see `load_progress`."""
    if folder is None or not (Path(folder) / "progress.json").exists():
        return 0, []
    return load_progress(folder, module, optimizer, average, made, extra)


def due(step: int, every: int, last: int) -> bool:
    """Whether what is done every so many steps, and at the last, is done after this one."""
    return step % every == 0 or step == last


def save_progress(folder, step, module, optimizer, average, records, made, extra=None):
    """Write a checkpoint: the optimizer's state and the average (dict or None) by name of the
    parameter, and `made`, the `origin` of the training. Of several processes the first one writes.
    """
    tensors = {f"module.{key}": value for key, value in module.state_dict().items()}
    for name, parameter in trainable(module).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
    tensors |= {f"average.{name}": value for name, value in (average or {}).items()}
    tensors |= {f"extra.{key}": value for key, value in parallel.merge_rows(extra or {}).items()}
    if parallel.rank():
        return parallel.wait()
    # The new tensors are complete on disk before progress.json names them, so no kill can pair one
    # step's weights with another's count.
    name = f"state_{step}.safetensors"
    checkpoint.save_tensors(Path(folder) / name, tensors)
    checkpoint.write_json(
        Path(folder) / "progress.json",
        {"step": step, "state": name, "made_from": made, "records": records},
    )
    for old in Path(folder).glob("state_*.safetensors"):
        if old.name != name:
            old.unlink()
    parallel.wait()


def load_progress(folder, module, optimizer, average, made, extra=None) -> tuple[int, list]:
    """Put a checkpoint into module, optimizer, average and extra; returns (step, records).
    UserError where it was not `made` from the same; nothing is changed then.
    """
    path = Path(folder) / "progress.json"
    progress = checkpoint.read_json(path, {"step": int, "state": str, "records": [dict]})
    if progress["state"] != f"state_{progress['step']}.safetensors" or not all(
        {"stage", "step"} <= record.keys() for record in progress["records"]
    ):
        raise UserError(
            f"{path} is not the progress of a training (its step, state and records do not fit each"
            f" other); it was edited, remove {folder} and train again"
        )
    tensors = checkpoint.load_tensors(Path(folder) / progress["state"])
    prefix = "module."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    own = module.state_dict()
    if set(weights) != set(own) or any(weights[key].shape != own[key].shape for key in own):
        raise UserError(
            f"{folder} holds the unfinished training of another model (other names or shapes);"
            " remove it or choose another folder"
        )
    check_origin(folder, progress.get("made_from"), made)
    others = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
    _check_kind(folder, others, module, average or {}, extra or {})
    module.load_state_dict(weights)
    for name, parameter in trainable(module).items():
        if f"optimizer.{name}.step" in tensors:
            places = {"step": "cpu", "exp_avg": parameter.device, "exp_avg_sq": parameter.device}
            optimizer.state[parameter] = {
                key: tensors[f"optimizer.{name}.{key}"].clone().to(place)
                for key, place in places.items()
            }
    for name, value in (average or {}).items():
        value.copy_(tensors[f"average.{name}"])
    if extra is not None:
        extra.update({k: tensors[f"extra.{k}"].clone().to(v.device) for k, v in extra.items()})
    return progress["step"], progress["records"]


def _check_kind(folder, tensors: dict, module, average: dict, extra: dict) -> None:
    """UserError unless a checkpoint's tensors beside the weights are those of this training."""
    wanted = {f"extra.{key}": value.shape for key, value in extra.items()}
    wanted |= {f"average.{name}": value.shape for name, value in average.items()}
    for name, parameter in trainable(module).items():
        if f"optimizer.{name}.step" in tensors:  # else it has had no gradient yet
            wanted[f"optimizer.{name}.step"] = ()
            wanted |= {f"optimizer.{name}.{k}": parameter.shape for k in ("exp_avg", "exp_avg_sq")}
    for key in [*wanted, *(key for key in tensors if key not in wanted)]:
        if key in tensors and key in wanted and tensors[key].shape == wanted[key]:
            continue
        wrong = "has another shape of" if key in tensors else "lacks"
        wrong = wrong if key in wanted else "holds"
        raise UserError(
            f"{folder} holds the unfinished training of another kind (it {wrong}"
            f" '{key.removeprefix('extra.')}'); remove it or choose another folder"
        )
