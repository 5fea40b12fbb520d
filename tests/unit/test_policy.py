"""The policy: action tokens, what a sample is a sample of, who sees what, cloning, and files that
refuse to be half a policy.
"""

import json
import math

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.common.errors import UserError
from wmpo_lite.policy import ActionStatistics, Policy, PolicyConfig, build_tokenizer, cloning_loss

K, D, V = tiny.CHUNK, tiny.ACTIONS, 7
STATISTICS = ActionStatistics(
    names=("joint", "lift", "turn", "grip"), low=(-1.0, 0.0, -3.0, -0.5), high=(1.0, 0.2, 5.0, 0.5)
)


def look(count=3, seed=0):
    return torch.from_numpy(tiny.noise_frames(count, seed=seed)), [
        (tiny.RED, tiny.BLUE)[i % 2] for i in range(count)
    ]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ----------------------------------------------------------------------------------- action tokens


def test_tokens_by_hand():
    model = tiny.policy(statistics=STATISTICS)
    assert model.tokenize(
        [[-1.0, 0.0, -3.0, -0.5], [1.0, 0.2, 5.0, 0.5], [0.0, 0.1, 1.0, 0.0]]
    ).tolist() == [[0] * 4, [6] * 4, [3] * 4]
    assert torch.allclose(
        model.detokenize(torch.tensor([0, 6, 3, 1])), torch.tensor([-1.0, 0.2, 1.0, -0.5 + 1 / 6])
    )


@pytest.mark.parametrize("bins", [2, 7, 21, 256])
def test_actions_come_back_within_half_a_bin(bins):
    model = tiny.policy(statistics=STATISTICS, bins=bins)
    low, high = torch.tensor(STATISTICS.low), torch.tensor(STATISTICS.high)
    actions = low + torch.rand(500, 4, generator=generator()) * (high - low)
    tokens = model.tokenize(actions)
    assert tokens.dtype == torch.int64 and tokens.min() == 0 and tokens.max() == bins - 1
    half = (high - low) / (bins - 1) / 2
    assert ((model.detokenize(tokens) - actions).abs() <= half * 1.0001).all()
    assert torch.equal(model.tokenize(model.detokenize(tokens)), tokens)


def test_actions_outside_the_range_are_clipped():
    model = tiny.policy()
    assert (
        model.tokenize(np.full((2, 3, 4), -9.0)).eq(0).all()
        and model.tokenize(np.full((2, 3, 4), 9.0)).eq(V - 1).all()
    )


# ------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize(
    "options", [dict(), dict(chunk=2, bins=256), dict(merge=1), dict(patch=8, merge=2)], ids=str
)
def test_one_parallel_pass_scores_the_whole_chunk(options):
    model = tiny.policy(**options)
    calls = []
    model.decoder.register_forward_hook(lambda *_: calls.append(1))
    frames, texts = look()
    c = model.config
    assert model.logits(frames, texts).shape == (3, c.chunk, c.action_dim, c.bins) and calls == [1]
    tokens, log_probs, actions = model.act(frames, texts, 1.0, generator())
    assert tokens.shape == log_probs.shape == actions.shape == (3, c.chunk, c.action_dim)
    assert tokens.dtype == torch.int64 and actions.dtype == torch.float32 and len(calls) == 2


def test_the_instruction_changes_the_logits():
    model = tiny.policy()
    frames, _ = look(2)
    red, blue = model.logits(frames, [tiny.RED] * 2), model.logits(frames, [tiny.BLUE] * 2)
    assert (red - blue).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert torch.equal(model.logits(frames, [tiny.RED.upper()] * 2), red)


def test_the_frame_changes_the_logits_and_rows_do_not_see_each_other():
    model = tiny.policy()
    frames, texts = look(4)
    whole = model.logits(frames, texts)
    assert (whole[0] - whole[2]).abs().max() > 1e-3
    for row in range(4):
        assert torch.allclose(
            model.logits(frames[row : row + 1], texts[row : row + 1]),
            whole[row : row + 1],
            atol=1e-4,
        )


def test_kept_vision_tokens_give_the_same_logits():
    model = tiny.policy()
    frames, texts = look()
    assert torch.equal(
        model.logits(None, texts, seen=model.features(frames)), model.logits(frames, texts)
    )


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "put the purple cube on the plate",
            "does not know the word purple of the instruction 'put the purple cube on the plate'",
        ),
        ("put the cyan cube on the magenta plate", "does not know the words cyan, magenta of"),
        (tiny.RED + " and " + tiny.BLUE, "has 15 words and the model reads 12"),
        ("", "an instruction is empty"),
        (" ,. ", "an instruction is empty"),
    ],
)
def test_sentences_that_the_policy_cannot_read_are_refused(text, message):
    """Rather than read as another: unknown words would all be one token, and surplus ones none."""
    frames, _ = look(2)
    with pytest.raises(UserError, match=message):
        tiny.policy().act(frames, [tiny.RED, text])


def test_case_and_punctuation_do_not_count():
    model, (frames, _) = tiny.policy(), look(1)
    assert torch.equal(
        model.logits(frames, ["Put the Red, cube on the plate."]), model.logits(frames, [tiny.RED])
    )
    assert not torch.equal(
        model.logits(frames, ["Put the Blue, cube on the plate."]), model.logits(frames, [tiny.RED])
    )


def test_one_instruction_for_each_picture_is_needed():
    frames, texts = look(3)
    for some in (texts[:1], texts + texts):
        with pytest.raises(UserError, match=f"3 pictures and {len(some)} instructions"):
            tiny.policy().logits(frames, some)


def test_the_words_of_the_instructions_are_known():
    ids = build_tokenizer().encode(f"{tiny.RED} {tiny.BLUE}").ids
    assert len(ids) == 14 and 0 not in ids and 1 not in ids  # neither padding nor unknown


@pytest.mark.parametrize("shape", [(2, 8, 16, 3), (2, 32, 32, 3), (2, 16, 16, 4), (2, 3, 16, 16)])
def test_frames_of_another_size_are_refused(shape):
    with pytest.raises(UserError, match="the policy reads 16x16 RGB frames"):
        tiny.policy().act(np.zeros(shape, np.uint8), [tiny.RED] * 2)


# ---------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_float_pictures_are_refused(scale):
    policy, frames = tiny.policy(), torch.from_numpy(tiny.noise_frames(1, 2)[0])
    with pytest.raises(UserError, match="reads frames as uint8, 0 to 255, got torch.float32"):
        policy.act(frames * torch.tensor(scale, dtype=torch.float32), [tiny.RED] * 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.6])
def test_recomputed_log_probs_equal_the_sampled_ones(temperature):
    model = tiny.policy()
    frames, texts = look(5)
    tokens, sampled, actions = model.act(frames, texts, temperature, generator())
    again, entropy = model.log_probs(frames, texts, tokens, temperature)
    assert torch.allclose(again, sampled, atol=1e-5)
    assert torch.equal(actions, model.detokenize(tokens))
    expected = torch.log_softmax(model.logits(frames, texts) / temperature, dim=-1)
    assert torch.allclose(again, expected.gather(-1, tokens[..., None])[..., 0], atol=1e-6)
    assert torch.allclose(
        entropy, torch.distributions.Categorical(logits=expected).entropy(), atol=1e-5
    )
    assert again.requires_grad and not sampled.requires_grad and not sampled.is_inference()
    other, _ = model.log_probs(frames, texts, tokens, temperature * 2)
    assert (other - sampled).abs().max() > 1e-2


def test_probabilities_sum_to_one():
    model = tiny.policy()
    frames, texts = look(2)
    total = sum(
        model.log_probs(frames, texts, torch.full((2, K, D), token), 1.6)[0].exp()
        for token in range(V)
    )
    assert torch.allclose(total, torch.ones(2, K, D), atol=1e-5)


def test_temperature_flattens_and_sharpens():
    model = tiny.policy()
    frames, texts = look(2)
    tokens = torch.zeros(2, K, D, dtype=torch.long)
    entropies = [model.log_probs(frames, texts, tokens, t)[1] for t in (0.1, 0.5, 1.0, 2.0, 1e4)]
    assert all((a < b).all() for a, b in zip(entropies, entropies[1:]))
    assert torch.allclose(entropies[-1], torch.full((2, K, D), np.log(V)), atol=1e-4)
    cold, _, _ = model.act(frames, texts, 1e-4, generator())
    assert torch.equal(cold, model.act(frames, texts)[0])


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_sampled_frequencies_match_the_softmax(temperature):
    """Within five standard errors in each of 4 x 4 x 7 cells, 4000 samples."""
    model, count = tiny.policy(), 4000
    frames, texts = look(1)
    p = torch.softmax(model.logits(frames, texts)[0] / temperature, dim=-1).detach()  # (K, D, V)
    assert p.max() > 2 / V  # not uniform, or the test would show nothing
    tokens, _, _ = model.act(
        frames.expand(count, -1, -1, -1), texts * count, temperature, generator()
    )
    frequencies = torch.nn.functional.one_hot(tokens, V).float().mean(0)
    assert ((frequencies - p).abs() < 5 * (p * (1 - p) / count).sqrt()).all()
    joint = ((tokens[:, 0, 0] == tokens[:, 1, 0]).float().mean() - (p[0, 0] * p[1, 0]).sum()).abs()
    assert joint < 5 * 0.5 / count**0.5  # tokens of a chunk are drawn independently


def test_greedy_is_the_argmax():
    model = tiny.policy()
    frames, texts = look()
    tokens, log_probs, _ = model.act(frames, texts)
    logits = model.logits(frames, texts)
    assert torch.equal(tokens, logits.argmax(-1)) and torch.allclose(
        log_probs, torch.log_softmax(logits, -1).amax(-1), atol=1e-6
    )


def test_the_seed_decides_the_tokens():
    model = tiny.policy()
    frames, texts = look(4)
    one, two, other = (model.act(frames, texts, 1.0, generator(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)
    source = generator(0)
    first, second = (model.act(frames, texts, 1.0, source)[0] for _ in range(2))
    assert torch.equal(first, one) and not torch.equal(first, second)


def test_rows_with_the_same_picture_are_sampled_apart():
    frames, texts = look(1)
    tokens, _, _ = tiny.policy().act(frames.expand(8, -1, -1, -1), texts * 8, 1.6, generator())
    assert len({tuple(row.flatten().tolist()) for row in tokens}) == 8


# ----------------------------------------------------------------------------------------- cloning


def test_cloning_loss_by_hand():
    model = tiny.policy()
    frames, texts = look(2)
    actions = torch.from_numpy(tiny.random_actions(2, K, D))
    log_p = torch.log_softmax(model.logits(frames, texts), -1).gather(
        -1, model.tokenize(actions)[..., None]
    )[..., 0]  # (2, K, D)
    assert torch.allclose(cloning_loss(model, frames, texts, actions)[0], -log_p.mean(), atol=1e-6)
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]])
    assert torch.allclose(
        cloning_loss(model, frames, texts, actions, mask)[0],
        -(log_p[0, :3].sum() + log_p[1, :1].sum()) / (4 * D),
        atol=1e-6,
    )
    assert cloning_loss(model, frames, texts, actions, torch.zeros(2, K))[0] == 0


def test_cloning_learns_a_tiny_batch():
    """Two pictures and two instructions, four different answers: only a policy that reads both can
    clone them.
    """
    model = tiny.policy(contrast=1.0)
    frames, _ = look(2)
    frames, texts = frames.repeat(2, 1, 1, 1), [tiny.RED] * 2 + [tiny.BLUE] * 2
    actions = torch.from_numpy(tiny.random_actions(4, K, D))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(120):
        loss, _ = cloning_loss(model, frames, texts, actions)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(V), rel=0.2)
    assert losses[-1] < 0.1 * losses[0]
    assert (model.act(frames, texts)[0] == model.tokenize(actions)).float().mean() > 0.95


# --------------------------------------------------------------------------------------- contracts


def test_an_environment_that_means_other_actions_is_refused():
    model, env = tiny.policy(), tiny.Counter()
    model.check_environment(env)
    env.action_names = ("joint 1", "joint 2", "joint 3", "gripper")
    with pytest.raises(
        UserError,
        match="action statistics are for dx, dy, dz, gripper, the environment expects joint 1",
    ):
        model.check_environment(env)
    env.action_names, env.action_dim = ("dx", "dy", "dz", "gripper"), 7
    with pytest.raises(UserError, match="7 numbers"):
        model.check_environment(env)


@pytest.mark.parametrize(
    "low, high",
    [
        (0.0, 0.0),
        (1.0, -1.0),
        (math.nan, 1.0),
        (-1.0, math.nan),
        (-math.inf, 1.0),
        (0.0, 1e-60),
        (-3e38, 3e38),
        (0.0, None),
        ("a", 1.0),
    ],
)
def test_a_range_that_is_none_is_refused_where_it_is_made(low, high):
    """Also in single precision, as the policy counts."""
    with pytest.raises(UserError, match="action statistics of 'gripper' have the range"):
        ActionStatistics(("dx", "gripper"), (-1.0, low), (1.0, high))


def test_actions_without_a_token_are_refused():
    model = tiny.policy(statistics=STATISTICS)
    with pytest.raises(UserError, match="actions hold NaN"):
        model.tokenize([[0.0, math.nan, 0.0, 0.0]])
    for shape in ((4, 1), (4, 7), (3,), ()):
        with pytest.raises(UserError, match=r"expected \(\.\.\., 4\), a number for each of"):
            model.tokenize(np.zeros(shape))
    ends = model.tokenize([[math.inf] * 4, [-math.inf] * 4])
    assert ends.tolist() == [[model.config.bins - 1] * 4, [0] * 4]


def test_fewer_than_two_bins_are_refused():
    with pytest.raises(UserError, match="bins is 1; expected 2 or more"):
        PolicyConfig(bins=1)


def test_statistics_of_another_robot_are_refused():
    with pytest.raises(UserError, match="name 3 dimensions.*the policy has 4"):
        tiny.policy(statistics=ActionStatistics(("x", "y", "z"), (0.0,) * 3, (1.0,) * 3))


# ------------------------------------------------------------------------------------------- files


@pytest.fixture
def saved(tmp_path):
    model = tiny.policy(statistics=STATISTICS)
    model.save(tmp_path / "policy", {"note": "a test"})
    return model, tmp_path / "policy"


def test_a_saved_policy_comes_back_bit_exact(saved):
    model, folder = saved
    again = Policy.load(folder)
    assert again.config == model.config and again.statistics == STATISTICS and not again.training
    own, other = model.state_dict(), again.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    assert again.tokenizer.to_str() == model.tokenizer.to_str()
    frames, texts = look()
    for temperature in (None, 1.6):
        one, two = (
            model.act(frames, texts, temperature, generator()),
            again.act(frames, texts, temperature, generator()),
        )
        assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}  # no pickle


def test_the_saved_tokenizer_is_used(saved):
    """A policy keeps the words it was trained with, whatever the kit's word list says later."""
    _, folder = saved
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    frames, _ = look(1)
    before, after = (
        saved[0].logits(frames, [tiny.RED]),
        Policy.load(folder).logits(frames, [tiny.BLUE]),
    )
    assert torch.equal(before, after)


@pytest.mark.parametrize("key", ["names", "low", "high"])
def test_missing_action_statistics_are_refused(saved, key):
    _, folder = saved
    values = json.loads((folder / "actions.json").read_text())
    (folder / "actions.json").write_text(json.dumps({k: v for k, v in values.items() if k != key}))
    with pytest.raises(UserError, match="actions.json must hold names, low and high"):
        Policy.load(folder)


def test_partly_copied_policies_are_refused(saved):
    _, folder = saved
    for name in ("actions.json", "config.json", "model.safetensors"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match=name):
            Policy.load(folder)
        (folder / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            Policy.load(folder)
        (folder / name).write_bytes(data)
    Policy.load(folder)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_policy_without_its_tokenizer_is_refused(saved, damage):
    _, folder = saved
    path = folder / "tokenizer.json"
    path.unlink() if damage == "missing" else path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match="tokenizer.json"):
        Policy.load(folder)


@pytest.mark.parametrize(
    "values",
    [
        [],
        {"names": ["a"], "low": [0.0], "high": [0.0]},
        {"names": ["a"], "low": 0.0, "high": [1.0]},
    ],
)
def test_statistics_that_cannot_be_used_name_their_file(saved, values):
    _, folder = saved
    (folder / "actions.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="actions.json"):
        Policy.load(folder)


def test_statistics_of_another_length_are_refused(saved):
    """One number for four dimensions would broadcast in silence and move the robot wrongly."""
    _, folder = saved
    (folder / "actions.json").write_text(
        json.dumps({"names": ["a", "b", "c", "d"], "low": [-1.0], "high": [1.0, 1.0, 1.0, 1.0]})
    )
    with pytest.raises(UserError):
        Policy.load(folder)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(UserError, match="temperature"):
        tiny.policy().act(*look(), temperature)


def test_another_class_is_refused(tmp_path):
    tiny.world_model().save(tmp_path / "model")
    with pytest.raises(UserError, match="holds a 'WorldModel', expected a 'Policy'"):
        Policy.load(tmp_path / "model")
    assert PolicyConfig().bins == 21
