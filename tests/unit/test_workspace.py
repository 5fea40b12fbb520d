"""Where imagination starts."""
from types import SimpleNamespace

import numpy as np

from wmpo_lite.envs.tabletop.env import initial_states
from wmpo_lite.envs.tabletop.tasks import get_task
from wmpo_lite.envs.tabletop.tasks.pair import COLOURS
from wmpo_lite.workspace import starts_of_imagination


def test_every_recorded_first_frame_is_imagined_under_both_sentences():
    task = get_task("place")
    states = initial_states(task, "rollouts", np.arange(20))
    rollouts = [SimpleNamespace(initial_state=row, frames=np.full((2, 8, 8, 3), i, np.uint8), instruction=text, split="rollouts", index=i)
                for i, (row, text) in enumerate(zip(states.states, states.instructions))]
    starts = starts_of_imagination(SimpleNamespace(task=task, rollouts=lambda: rollouts))
    assert len(starts) == 40 and starts.split == "rollouts" and starts.instructions[:20] == states.instructions
    assert np.array_equal(starts.frames[:20], starts.frames[20:]) and np.array_equal(starts.indices[:20], starts.indices[20:])
    for own, other, row in zip(starts.instructions[:20], starts.instructions[20:], states.states):
        named = [next(colour for colour in COLOURS if colour in text.split()) for text in (own, other)]
        assert set(named) == {COLOURS[int(row[-3])], COLOURS[int(row[-2])]} and named[0] != named[1]
