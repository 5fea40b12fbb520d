"""The policy on an image-text backbone: tiny random SmolVLM and PaliGemma models, so nothing is
fetched.
"""

import copy
import dataclasses
import json

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite import grpo
from wmpo_lite.common.errors import UserError
from wmpo_lite.policies import load_policy
from wmpo_lite.policies.backbone import BackboneConfig, BackbonePolicy
from wmpo_lite.policy import Policy, build_tokenizer, cloning_loss
from wmpo_lite.recipes.pretrain_policy import clone
from wmpo_lite.rollout import rollout
from wmpo_lite.train import FitConfig
from wmpo_lite.train_grpo import optimize

CONFIG = BackboneConfig(image=64, chunk=2, action_dim=3)
SENTENCES = ["put the red cube on the plate", "open the drawer", "put the green cube on the plate"]
VOCABULARY, IMAGE = 300, 299


def smolvlm():
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=dict(small, image_size=32, patch_size=8),
            scale_factor=2,
            image_token_id=IMAGE,
            pad_token_id=0,
            text_config=dict(
                small,
                model_type="llama",
                vocab_size=VOCABULARY,
                num_key_value_heads=2,
                pad_token_id=0,
            ),
        )
    )


def paligemma():
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=dict(
                small,
                model_type="siglip_vision_model",
                image_size=32,
                patch_size=8,
                projection_dim=32,
            ),
            projection_dim=32,
            hidden_size=32,
            image_token_id=IMAGE,
            text_config=dict(
                small,
                model_type="gemma",
                vocab_size=VOCABULARY,
                num_key_value_heads=1,
                head_dim=16,
                pad_token_id=0,
            ),
        )
    )


def make(family, **changes):
    torch.manual_seed(0)
    return BackbonePolicy(
        family().eval(), build_tokenizer(), dataclasses.replace(CONFIG, **changes)
    ).eval()


def frames(count=3, size=64):
    return torch.randint(
        0,
        256,
        (count, size, size, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(1),
    )


@pytest.fixture(params=[smolvlm, paligemma], ids=lambda family: family.__name__)
def family(request):
    return request.param


def test_every_example_is_read_for_itself(family):
    policy, pictures = make(family), frames()
    scores = policy.logits(pictures, SENTENCES)
    assert scores.shape == (3, 2, 3, 256)
    alone = torch.cat([policy.logits(pictures[i : i + 1], SENTENCES[i : i + 1]) for i in range(3)])
    assert torch.allclose(
        scores, alone, atol=1e-5
    )  # sentences of other lengths in the batch change nothing
    assert (policy.logits(pictures[:1], SENTENCES[1:2]) - scores[:1]).abs().max() > 1e-3
    assert (policy.logits(pictures[1:2], SENTENCES[:1]) - scores[:1]).abs().max() > 1e-3
    assert torch.equal(policy.logits(None, SENTENCES, policy.features(pictures)), scores)


def test_the_backbone_reads_pictures_and_words_as_it_would_by_itself(family):
    """Its own forward pass over picture tokens and sentence; a policy without queries must come to
    the same states.
    """
    torch.manual_seed(0)
    model = family().eval()
    policy = BackbonePolicy(
        model, build_tokenizer(), dataclasses.replace(CONFIG, image=32)
    )  # its own size: nothing is enlarged
    pictures, words = (
        frames(1, 32),
        torch.tensor([policy.tokenizer.encode(CONFIG.prompt.format(instruction=SENTENCES[0])).ids]),
    )
    seen = policy.features(pictures)
    ids = torch.cat([torch.full((1, seen.shape[1]), IMAGE), words], dim=1)
    pixels = pictures.permute(0, 3, 1, 2) / 127.5 - 1
    more = {"token_type_ids": torch.zeros_like(ids)} if family is paligemma else {}
    own = model.model(
        input_ids=ids,
        pixel_values=pixels if family is paligemma else pixels[:, None],
        attention_mask=torch.ones_like(ids),
        **more,
    )
    caught = []
    hook = model.model.register_forward_hook(
        lambda module, args, options, out: caught.append((options, out)), with_kwargs=True
    )
    policy.hidden(seen, SENTENCES[:1])
    hook.remove()
    given, states = caught[0][0]["inputs_embeds"], caught[0][1].last_hidden_state
    with torch.no_grad():
        expected = torch.cat([seen, model.get_input_embeddings()(words), policy.slots[None]], dim=1)
    assert torch.equal(given, expected)
    if family is smolvlm:  # causal: what comes later is not seen by what comes first
        assert torch.allclose(states[:, : ids.shape[1]], own.last_hidden_state, atol=1e-5)
    else:
        again = model.model(
            inputs_embeds=given[:, : ids.shape[1]], attention_mask=torch.ones_like(ids), **more
        )
        assert torch.allclose(again.last_hidden_state, own.last_hidden_state, atol=1e-5)


def test_action_tokens_stand_at_the_end_of_the_vocabulary(family):
    model = family()
    policy = BackbonePolicy(model, build_tokenizer(), CONFIG)
    words = model.get_output_embeddings().weight
    assert torch.equal(policy.head[0], words[VOCABULARY - 1]) and torch.equal(
        policy.head[255], words[VOCABULARY - 256]
    )
    tokens = policy.tokenize(torch.tensor([-1.0, 0.0, 1.0]))
    assert tokens.tolist() == [0, 128, 255] and policy.vocabulary_ids(tokens).tolist() == [
        299,
        171,
        44,
    ]
    assert torch.allclose(
        policy.detokenize(policy.tokenize(torch.tensor([0.3, -0.7, 0.999]))),
        torch.tensor([0.3, -0.7, 0.999]),
        atol=1 / 255,
    )


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_it_learns_a_chunk_by_heart_and_comes_back_from_disk(family, lora_rank, tmp_path):
    policy, pictures = make(family, lora_rank=lora_rank), frames()
    actions = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1
    parameters = [p for p in policy.parameters() if p.requires_grad]
    before = {
        name: value.clone() for name, value in policy.named_parameters() if not value.requires_grad
    }
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(80):
        loss, _ = cloning_loss(policy, pictures, SENTENCES, actions)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert (policy.act(pictures, SENTENCES)[2] - actions).abs().max() < 0.02
    trained = {name for name, value in policy.named_parameters() if value.requires_grad}
    if lora_rank:
        assert (
            all("lora_" in name or name in ("head", "slots") for name in trained)
            and not any("vision" in name for name in trained)
            and before
        )
        assert all(
            torch.equal(value, before[name])
            for name, value in policy.named_parameters()
            if name in before
        )
    else:
        assert any("vision" in name for name in trained) and not before
    policy.save(tmp_path / "policy", {"task": "x"})
    again = load_policy(tmp_path / "policy")
    assert (
        isinstance(again, BackbonePolicy)
        and again.config == policy.config
        and torch.equal(again.logits(pictures, SENTENCES), policy.logits(pictures, SENTENCES))
    )
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.p*kle"))


@pytest.mark.parametrize("lora_rank, vision", [(0, True), (0, False), (4, True)])
def test_grpo_updates_it_like_any_policy(lora_rank, vision):
    """One iteration in `tiny.Counter`, where every policy succeeds now and then."""
    policy = make(smolvlm, lora_rank=lora_rank, image=tiny.SIZE, action_dim=4)
    policy.set_range(tiny.policy().statistics, 4)
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    config = grpo.GRPOConfig(groups=4, group_size=8, lr=1e-3, warmup=1, epochs=1, minibatch=16)
    record = optimize(
        policy,
        lambda seed: tiny.Counter(),
        tiny.states(8),
        config,
        iterations=1,
        horizon=4,
        seed=0,
        stage="test",
        freeze_vision=not vision,
        refill=2,
    )[0]
    moved = {
        name for name, value in policy.named_parameters() if not torch.equal(value, before[name])
    }
    assert (
        record["kept"]
        and "head" in moved
        and any("vision" in name for name in moved) == (vision and not lora_rank)
    )
    assert abs(record["approx_kl"]) < 1.0 and np.isfinite(record["loss"])


def test_a_model_is_loaded_by_name_from_a_folder(tmp_path, family):
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = family().eval()
    model.save_pretrained(tmp_path / "backbone")
    PreTrainedTokenizerFast(tokenizer_object=build_tokenizer()).save_pretrained(
        tmp_path / "backbone"
    )
    policy = BackbonePolicy.from_name(str(tmp_path / "backbone"), CONFIG).eval()
    torch.manual_seed(1)
    other = BackbonePolicy(model, build_tokenizer(), CONFIG).eval()
    other.slots.data.copy_(policy.slots.data)
    assert torch.equal(policy.logits(frames(), SENTENCES), other.logits(frames(), SENTENCES))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda: BackbonePolicy.from_name("nobody/has-this-model"), "give download=True"),
        (lambda: make(smolvlm, prompt="do something"), "no place for the instruction"),
        (lambda: make(smolvlm, bins=301), "expected 2 to 300"),
        (lambda: make(smolvlm).logits(frames(1, 32), SENTENCES[:1]), "reads 64x64 RGB frames"),
        (lambda: make(smolvlm).logits(frames()[:, :32], SENTENCES), "reads 64x64 RGB frames"),
        (
            lambda: BackbonePolicy(smolvlm(), build_tokenizer(), CONFIG, tiny.policy().statistics),
            "belong to different robots",
        ),
    ],
)
def test_bad_input_gets_one_sentence(spoil, message):
    with pytest.raises(UserError, match=message) as caught:
        spoil()
    assert "\n" not in str(caught.value)


def test_the_wrong_checkpoint_is_named(tmp_path):
    make(smolvlm).save(tmp_path / "policy")
    with pytest.raises(UserError, match="holds a 'BackbonePolicy', expected a 'Policy'"):
        Policy.load(tmp_path / "policy")
    (tmp_path / "policy" / "backbone.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match="describes no image-text model"):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize("where", ["vision", "words"])
def test_a_backbone_with_dropout_starts_an_update_with_ratios_of_one(where):
    """Its configuration may ask for dropout, which `train` mode turns on; the actions were sampled
    without.
    """
    torch.manual_seed(0)
    model = smolvlm()
    (
        model.config.vision_config if where == "vision" else model.config.text_config
    ).attention_dropout = 0.3
    model = type(model)(model.config)
    policy = BackbonePolicy(
        model.eval(),
        build_tokenizer(),
        dataclasses.replace(CONFIG, image=tiny.SIZE, action_dim=4, bins=8),
        tiny.policy().statistics,
    )
    with torch.no_grad():
        policy.head.mul_(30), policy.slots.mul_(3)
    policy.train()
    pictures = frames(3, tiny.SIZE)
    assert not torch.equal(
        policy.logits(pictures, SENTENCES), policy.logits(pictures, SENTENCES)
    )  # it does drop
    states = tiny.states(2, frames=False).repeat(8)
    trajectories = rollout(
        policy,
        tiny.Counter(goal=0.7),
        states,
        horizon=8,
        temperature=1.0,
        seed=0,
        groups=np.repeat([0, 1], 8),
    )
    kept, _ = grpo.filter_groups(trajectories)
    policy.train()
    logs = grpo.update(
        policy,
        torch.optim.SGD(policy.parameters(), lr=0.0),
        grpo.batch_from_trajectories(kept),
        grpo.GRPOConfig(group_size=8, epochs=1),
    )
    assert logs["ratio_min"] == pytest.approx(1, abs=1e-3) and logs["ratio_max"] == pytest.approx(
        1, abs=1e-3
    )


@pytest.mark.parametrize(
    "whole", [True, False]
)  # turned into bfloat16 as a whole, or built so, which leaves the rotary frequencies exact
def test_a_backbone_in_sixteen_bits_is_cloned_with_its_tower_frozen_and_keeps_its_type(
    family, whole, tmp_path
):
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model, dtype = family(), torch.bfloat16
    model = (
        model.to(dtype)
        if whole
        else AutoModelForImageTextToText.from_config(model.config, dtype=dtype)
    )
    policy = BackbonePolicy(
        model.eval(),
        build_tokenizer(),
        dataclasses.replace(CONFIG, action_dim=4),
        tiny.policy().statistics,
    ).eval()
    demos = {
        "frames": tiny.noise_frames(2, 9, size=64),
        "intended": tiny.random_actions(2, 8, 4),
        "executed": tiny.random_actions(2, 8, 4),
        "done": np.tile(np.arange(8) == 7, (2, 1)),
        "instruction": np.array(SENTENCES[:2]),
    }
    tower = [p.clone() for p in policy.vision.parameters()]
    records = clone(
        policy, demos, FitConfig(steps=3, lr=1e-3), seed=0, folder=tmp_path / "fit", batch=4
    )
    assert np.isfinite(records[-1]["loss"]) and all(
        torch.equal(a, b) for a, b in zip(tower, policy.vision.parameters())
    )
    again = clone(
        policy_again := copy.deepcopy(policy),
        demos,
        FitConfig(steps=3, lr=1e-3),
        seed=0,
        folder=None,
        batch=4,
        tune_vision=True,
    )
    assert np.isfinite(again[-1]["loss"]) and {p.dtype for p in policy_again.body.parameters()} == {
        dtype
    }
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert {name: p.dtype for name, p in loaded.named_parameters()} == {
        name: p.dtype for name, p in policy.named_parameters()
    }
    assert loaded.head.dtype == loaded.slots.dtype == torch.float32 and loaded.body.dtype == dtype
    assert torch.equal(loaded.logits(frames(), SENTENCES), policy.logits(frames(), SENTENCES))


def test_a_policy_turned_into_sixteen_bits_keeps_its_action_range():
    statistics = dataclasses.replace(
        tiny.policy().statistics, low=(-0.3701,) * 4, high=(0.2003,) * 4
    )
    policy = (
        BackbonePolicy(
            smolvlm(), build_tokenizer(), dataclasses.replace(CONFIG, action_dim=4), statistics
        )
        .to(torch.bfloat16)
        .eval()
    )
    tokens, _, actions = policy.act(frames(), SENTENCES)
    assert actions.dtype == torch.float32 and torch.equal(policy.tokenize(actions), tokens)
    assert policy.detokenize(torch.tensor([[0, 255, 0, 255]]))[0].tolist() == pytest.approx(
        [-0.3701, 0.2003] * 2, abs=1e-6
    )


def test_sentences_that_the_tokenizer_has_no_words_for_are_refused():
    policy = make(smolvlm)
    for text, message in (
        ("put the purple cube on the plate", "does not know the word purple"),
        ("", "an instruction is empty"),
    ):
        with pytest.raises(UserError, match=message):
            policy.act(frames(2), [SENTENCES[0], text])
    with pytest.raises(UserError, match="3 pictures and 2 instructions"):
        policy.logits(frames(3), SENTENCES[:2])


def test_a_backbone_that_was_read_in_sixteen_bits_and_trained_in_thirty_two_keeps_them(
    family, tmp_path
):
    family().eval().to(torch.bfloat16).save_pretrained(tmp_path / "named")
    model = type(family()).from_pretrained(tmp_path / "named")
    assert model.dtype == torch.bfloat16 == model.config.dtype
    policy = BackbonePolicy(model, build_tokenizer(), CONFIG).float().eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1e-4 * torch.randn_like(parameter))  # less than bfloat16 can tell
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    for (name, one), (_, two) in zip(policy.state_dict().items(), loaded.state_dict().items()):
        assert one.dtype == two.dtype == torch.float32 and torch.equal(one, two), name
    for (name, one), (_, two) in zip(policy.named_buffers(), loaded.named_buffers()):
        assert one.dtype == two.dtype and torch.equal(one, two), name
    assert torch.equal(loaded.logits(frames(), SENTENCES), policy.logits(frames(), SENTENCES))


def test_float_pictures_are_refused(family):
    with pytest.raises(UserError, match="reads frames as uint8, 0 to 255, got torch.float32"):
        make(family).logits(frames() / 255, SENTENCES)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], "many", [[1.0], [1.0, 2.0]]])
def test_buffers_that_were_edited_are_refused(values, tmp_path):
    make(paligemma).save(tmp_path / "policy")
    path = tmp_path / "policy" / "backbone.json"
    described = json.loads(path.read_text())
    described["buffer_values"]["language_model.embed_tokens.embed_scale"] = values
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match="has another shape of 'language_model.embed_tokens"):
        load_policy(tmp_path / "policy")


def test_short_sentences_are_filled_up_alike_under_every_attention(family):
    policy, pictures = make(family), frames()
    scores = {}
    for kind in ("sdpa", "eager"):
        policy.body.set_attn_implementation(kind)
        scores[kind] = policy.logits(pictures, SENTENCES)  # of different lengths
        alone = torch.cat(
            [policy.logits(pictures[i : i + 1], SENTENCES[i : i + 1]) for i in range(3)]
        )
        assert torch.allclose(scores[kind], alone, atol=1e-5)
    assert torch.allclose(scores["sdpa"], scores["eager"], atol=1e-5)
