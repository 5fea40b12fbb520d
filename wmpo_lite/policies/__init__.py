"""Policies on image-text backbones; `load_policy` reads these and the miniature alike."""

from pathlib import Path


def load_policy(folder):
    """The policy in a checkpoint folder, of whichever class it is."""
    from wmpo_lite.common.checkpoint import read_json

    if read_json(Path(folder) / "config.json").get("class") == "BackbonePolicy":
        from wmpo_lite.policies.backbone import BackbonePolicy

        return BackbonePolicy.load(folder)
    from wmpo_lite.policy import Policy

    return Policy.load(folder)
