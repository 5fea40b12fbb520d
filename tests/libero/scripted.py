"""A scripted hand for pick-and-place tasks of LIBERO: above the object, down, close, lift, above the goal, open."""
import numpy as np

GAIN = 0.1  # metres of error that ask for the full action


def play(env, thing: str, goal: str, steps: int, lift: float = 0.22, grip: float = 0.0, chunk: int = 4):
    """Plays one episode of the last reset to its end or for `steps` policy steps; returns actions (T, 7), done (T,) and the last frame.

    grip: height of the hand over the object's origin while it closes, metres."""
    source, target = env.objects.index(thing), env.objects.index(goal)
    actions, done, phase, wait = [], [], 0, 0
    still = np.zeros((1, 1, 7))
    still[..., 6] = -1
    frames, finished, info = env.step_chunk(still)
    start = info["objects"][0, -1, source].copy()
    while len(actions) < steps and not finished[0, -1]:
        tip, objects = info["tip"][0, -1], info["objects"][0, -1]
        place = objects[target]
        goals = [start + [0, 0, 0.12], start + [0, 0, grip], start + [0, 0, grip], start + [0, 0, lift], place + [0, 0, lift], place + [0, 0, lift]]
        error = goals[phase] - tip
        action = np.concatenate([np.clip(error / GAIN, -1, 1), np.zeros(3), [1.0 if 2 <= phase < 5 else -1.0]])
        frames, finished, info = env.step_chunk(action[None, None])
        actions.append(action), done.append(bool(finished[0, -1]))
        wait += 1
        if phase in (2, 5):
            if wait >= max(2, 12 // env.stride) and phase == 2:
                phase, wait = 3, 0
        elif np.linalg.norm(goals[phase] - info["tip"][0, -1]) < 0.015:
            phase, wait = phase + 1, 0
    return np.array(actions), np.array(done), frames[0, -1]
