"""The world model of a run: the pre-trained one, aligned with the behavior of the policy."""

import dataclasses

import numpy as np

from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.recipes.rollouts import demonstrations, recordings, require_outcomes
from wmpo_lite.recipes.workspace import Workspace


def align_world_model(w: Workspace) -> dict:
    """Policy behavior alignment (paper section 3.2): fine-tune the pre-trained world model on the P
    rollouts, failures included, and the cloning demonstrations.

    Windows end a few frames after `finish_step`: what a policy does once it is done is nobody's
    business.
    """
    import torch

    from wmpo_lite.own_context import Pool, WindowConfig
    from wmpo_lite.train import FitConfig, fit

    s = w.settings
    require_outcomes(w.rollouts())  # which a deployment may have recorded
    model = w.compute.prepare(w.pretrained_world_model().to(memory_format=torch.channels_last))
    shown = w.rollouts() + demonstrations(w)
    windows = WindowConfig(batch=s.align_batch, ramp=s.align_steps // 4)
    pool = Pool(recorded_episodes(w, shown), model, windows)
    records = fit(
        model,
        pool.loss,
        FitConfig(
            steps=s.align_steps, lr=s.align_lr, warmup=20, decay=0.6, ema=0.99, save_every=100
        ),
        seed=w.run.seed,
        name="align",
        folder=w.folder / "fit_align",
        log_every=20,
        on_log=w.log,
        extra=pool.tensors,
        shared=True,
        passes=parallel.passes(s.align_batch, w.compute.micro_batch),
        made_from={
            **recordings(shown),
            "autoencoder": checkpoint.fingerprint(w.autoencoder()),
            **dataclasses.asdict(windows),
            "after_success": s.after_success,
        },
    )
    about = w.provenance(stage="align", ema_decay=records[-1]["ema_decay"])
    parallel.first(lambda: model.save(w.folder / "world_model", about))
    return records[-1]


def recorded_episodes(w: Workspace, trajectories):
    """Trajectories as the world model's episodes: latents, actions, and the last frame of each that
    it is trained on.
    """
    import torch

    from wmpo_lite.own_context import Episodes

    frames, actions = (
        torch.from_numpy(np.stack([getattr(t, name) for t in trajectories]))
        for name in ("frames", "actions")
    )
    after = w.settings.after_success
    last = [min(t.finish_step + after, len(t)) if t.success else len(t) for t in trajectories]
    return Episodes(w.autoencoder().encode_uint8(frames), actions, last)
