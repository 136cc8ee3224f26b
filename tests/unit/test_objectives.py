"""The objectives by name: known answers, what the model gets of them, what they refuse, and that each trains."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from coreclip.config import Config, DataConfig, DistillConfig, JestConfig, ModelConfig, ReselectConfig, TrainConfig
from coreclip.errors import CoreclipError
from coreclip.training import embed, evaluate, train
from coreclip.training.class_softmax import class_texts, classification_loss
from coreclip.training.distillation import affinity_loss, make_teacher
from coreclip.training.loss import equal_pairs, pairs_of, scaled
from coreclip.training.model import MAX_LOGIT_SCALE, build_model
from coreclip.training.objectives import OBJECTIVES, make_objective
from coreclip.training.sigmoid import sigmoid_loss
from coreclip.training.steps import Rows, make_optimiser, update
from coreclip.training.text_towers import caption_lengths
from tests.helpers import make_dataset
from tests.unit.test_train import Stop, StopAfter, lines, weights

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Config(
    data=DataConfig(image_size=16, batch_size=6, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", lr=5e-3),
)


def settings(**changes):
    return replace(CONFIG, train=replace(CONFIG.train, **changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 12, labels=("red_boat", "dog", "house"))


def test_the_sigmoid_loss_of_a_known_batch():
    images, texts = torch.nn.functional.normalize(
        torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)), dim=2
    )
    scale, bias = torch.tensor(1.2), torch.tensor(-0.7)
    same = equal_pairs(torch.tensor([[1], [2], [1], [3], [4]]))
    expected = 0.0
    for i in range(5):
        for j in range(5):
            sign = 1 if same[i, j] else -1
            expected += math.log1p(math.exp(-sign * (math.exp(1.2) * float(images[i] @ texts[j]) - 0.7))) / 5
    result = sigmoid_loss(images, texts, scale, bias, same=same)
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)
    assert result.floor == 0
    assert result.sample_loss.mean().item() == pytest.approx(expected, rel=1e-5)


def test_equal_captions_do_not_keep_the_sigmoid_loss_from_zero():
    corners = torch.eye(2).repeat(4, 1)
    same = equal_pairs(torch.tensor([[1, 5], [1, 6]]).repeat(4, 1))
    result = sigmoid_loss(corners, corners, torch.tensor(math.log(100.0)), torch.tensor(-50.0), same=same)
    assert result.loss.item() < 1e-6
    assert result.correct.all()
    torch.testing.assert_close(result.margin, torch.ones(8))
    torch.testing.assert_close(result.signals()["el2n"], torch.zeros(8))


def test_sigmoid_rows_of_weight_zero_and_batches_of_nothing():
    images, texts = torch.nn.functional.normalize(
        torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), dim=2
    )
    scalars = torch.tensor(1.0), torch.tensor(-1.0)
    some = sigmoid_loss(images, texts, *scalars, weight=torch.tensor([2.0, 0.0, 1.0]))
    kept = sigmoid_loss(images[[0, 2]], texts[[0, 2]], *scalars, weight=torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(some.loss, kept.loss)
    assert some.sample_loss.isnan().tolist() == [False, True, False]
    none = sigmoid_loss(images, texts, *scalars, weight=torch.zeros(3))
    assert none.loss == 0
    assert all(values.isnan().all() for name, values in none.signals().items() if name != "correct")


def test_only_a_sigmoid_model_has_a_bias():
    plain = build_model(CONFIG, vocab_size=300, seed=0)
    sigmoid = build_model(settings(objective="sigmoid"), vocab_size=300, seed=0)
    assert plain.logit_bias is None
    assert set(sigmoid.state_dict()) - set(plain.state_dict()) == {"logit_bias"}
    assert sigmoid.logit_bias.item() == pytest.approx(-math.log(6))
    assert all(torch.equal(tensor, sigmoid.state_dict()[name]) for name, tensor in plain.state_dict().items())


def test_a_sigmoid_run_learns_its_bias_goes_on_and_is_evaluated(data, tmp_path):
    config = settings(objective="sigmoid", checkpoint_seconds=1e-6)
    report = train(data, tmp_path / "long", config=settings(objective="sigmoid"), epochs=20)
    last = lines(tmp_path / "long")[-1]
    assert last["floor"] == 0
    assert last["logit_bias"] != pytest.approx(-math.log(6))
    assert report.loss < lines(tmp_path / "long")[0]["loss"]
    train(data, tmp_path / "whole", config=config, epochs=4)
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=config, epochs=4, watch=StopAfter(3))
    train(data, tmp_path / "parts", config=config, epochs=4)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert np.isfinite(np.load(tmp_path / "whole" / "signals" / "entropy.npy")).all()
    assert 0 <= evaluate(tmp_path / "whole", data)["image_to_text_recall_at_1"] <= 1


@pytest.mark.parametrize(("first", "then"), [("softmax", "sigmoid"), ("sigmoid", "softmax")])
def test_a_run_may_start_from_one_with_another_objective(data, tmp_path, first, then):
    train(data, tmp_path / "first", config=settings(objective=first), samples=6)
    train(data, tmp_path / "then", config=settings(objective=then), samples=6, init_from=tmp_path / "first")
    assert ("logit_bias" in load_file(tmp_path / "then" / "model.safetensors")) == (then == "sigmoid")


def test_an_unknown_objective_is_refused():
    assert set(OBJECTIVES) == {"softmax", "sigmoid", "classification"}
    for name in OBJECTIVES:
        TrainConfig(objective=name)
    with pytest.raises(CoreclipError, match=r"train.objective = 'hinge' is not allowed: one of softmax, sigmoid"):
        TrainConfig(objective="hinge")


def test_the_classification_loss_is_the_cross_entropy_over_the_classes():
    generator = torch.Generator().manual_seed(0)
    images, classes = (torch.nn.functional.normalize(torch.randn(n, 4, generator=generator), dim=1) for n in (5, 3))
    labels, scale = torch.tensor([0, 2, 1, 1, 0]), torch.tensor(2.0)
    expected = torch.nn.functional.cross_entropy(scale.exp() * images @ classes.T, labels)
    result = classification_loss(images, classes, scale, labels)
    torch.testing.assert_close(result.loss, expected)
    assert result.floor == 0
    torch.testing.assert_close(result.correct, (images @ classes.T).argmax(1) == labels)
    p = (scale.exp() * images @ classes.T).softmax(1)
    torch.testing.assert_close(result.signals()["confidence"], p.amax(1))
    torch.testing.assert_close(result.signals()["el2n"], (p - torch.eye(3)[labels]).norm(dim=1))


def test_classes_of_one_name_share_the_target():
    corners = torch.eye(2)
    classes, group = corners[[0, 0, 1]], torch.tensor([0, 0, 1])
    result = classification_loss(corners, classes, torch.tensor(math.log(100.0)), torch.tensor([1, 2]), group=group)
    assert result.floor.item() == pytest.approx(math.log(2) / 2)
    assert result.loss.item() == pytest.approx(math.log(2) / 2, abs=1e-6)
    torch.testing.assert_close(result.signals()["confidence"], torch.ones(2))


def test_the_prompts_are_those_of_zero_shot_classification(data):
    texts = class_texts(data, data.tokenizer(), ("{}", "a photo of a {}"), 16)
    assert texts.tokens.shape == (2, 3, 16)
    assert texts.group.unique().numel() == 3
    decoded = data.tokenizer().encode(["a photo of a red boat"], 16)
    assert np.array_equal(texts.tokens[1, 0], decoded[0])
    drawn = [texts.draw(seed=1, step=step) for step in range(20)]
    assert torch.equal(texts.draw(seed=1, step=3), drawn[3])
    assert len({tuple(rows[0].tolist()) for rows in drawn}) == 2  # both prompts come
    assert all((rows == texts.tokens).all(2).all(1).any() for rows in drawn)  # and of all classes the same


def test_a_classifier_learns_its_classes_and_stays_zero_shot(tmp_path):
    classes = {i: i % 3 for i in range(3, 12)}  # each class has one picture
    data = make_dataset(tmp_path / "data", 12, labels=("red_boat", "dog", "house"), copies=classes)
    before = train(data, tmp_path / "short", config=settings(objective="classification"), samples=6)
    after = train(data, tmp_path / "run", config=settings(objective="classification"), epochs=80)
    assert after.loss < 0.6 * before.loss
    assert evaluate(tmp_path / "run", data)["zero_shot_accuracy"] > 0.8
    assert np.load(tmp_path / "run" / "signals" / "correct.npy")[-6:].mean() > 0.5  # of three classes


def test_a_classification_without_labels_is_refused(tmp_path):
    data = make_dataset(tmp_path / "data", 6)
    with pytest.raises(
        CoreclipError, match=r"train.objective = 'classification' needs labels and class names, .*has no labels"
    ):
        train(data, tmp_path / "run", config=settings(objective="classification"), samples=6)
    assert not (tmp_path / "run").exists()


def test_the_floor_is_told_once_at_the_start(tmp_path, capsys):
    data = make_dataset(tmp_path / "data", 6, copies={1: 0, 2: 0}, captions_per_pair=(1,))
    config = settings(checkpoint_seconds=1e-6)
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=config, samples=30, watch=StopAfter(2))
    told = capsys.readouterr().err
    assert told.count("the loss cannot fall below about 0.55 on these batches: captions or classes repeat") == 1
    assert lines(tmp_path / "run")[0]["floor"] == pytest.approx(math.log(3) / 2)
    train(data, tmp_path / "run", config=config, samples=30)
    assert "cannot fall below" not in capsys.readouterr().err
    train(make_dataset(tmp_path / "other", 6), tmp_path / "other-run", config=settings(), samples=6)
    assert "cannot fall below" not in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- distillation


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    larger = replace(settings(), model=replace(CONFIG.model, embed_dim=12))
    train(data, folder / "run", config=larger, epochs=30)
    embed(data, folder / "features", model=folder / "run")
    return folder / "features"


def distill(source, weight=0.5, **changes):
    return replace(settings(**changes), distill=DistillConfig(features=str(source), weight=weight))


def distance(data, run, features, tmp_path):
    """How far a run's softmaxes over all pairs are from the teacher's."""
    embed(data, tmp_path / f"{run.name}-features", model=run)
    config = distill(tmp_path / f"{run.name}-features")
    index, caption = np.arange(data.n), np.zeros(data.n, np.int64)
    student = make_teacher(data, config)
    images, texts = student.take(index, caption, torch.zeros(1))
    target = make_teacher(data, distill(features))
    pairs = scaled(pairs_of(torch.arange(data.n).unsqueeze(1), None, torch.ones(data.n)))
    scale = torch.tensor(math.log(student.scale))
    return affinity_loss(images, texts, scale, *target.take(index, caption, images), target.scale, pairs).item()


def test_a_student_gets_nearer_to_its_teacher(data, teacher, tmp_path):
    train(data, tmp_path / "alone", config=settings(seed=3), epochs=30)
    train(data, tmp_path / "taught", config=distill(teacher, 1.0, seed=3), epochs=30)
    alone, taught = (distance(data, tmp_path / run, teacher, tmp_path) for run in ("alone", "taught"))
    assert taught < 0.7 * alone
    record = json.loads((tmp_path / "taught" / "run.json").read_text())
    assert len(record["asked"]["distill_features"]) == 64


def test_the_teacher_is_shown_the_caption_that_the_student_reads(data, teacher):
    stored = make_teacher(data, distill(teacher))
    features = stored.features
    images, texts = stored.take(np.array([4, 1]), np.array([1, 0]), torch.zeros(1, dtype=torch.float64))
    assert images.dtype == texts.dtype == torch.float64
    np.testing.assert_allclose(images, features.image[[4, 1]], atol=1e-3)
    rows = features.captions[[features.offsets[4] + 1, features.offsets[1]]]
    np.testing.assert_allclose(texts, rows, atol=1e-3)
    assert not np.allclose(texts, features.text[[4, 1]], atol=1e-3)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_the_teachers_share_is_mixed_into_any_objective(data, teacher, objective):
    model = build_model(settings(objective=objective), vocab_size=data.tokenizer().vocab_size, seed=0).eval()
    tokens = torch.from_numpy(data.tokenizer().encode([data.captions(i)[0] for i in range(4)], 16))
    images = torch.randint(0, 255, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, lengths = torch.tensor([0, 1, 2, 0]), caption_lengths(tokens, model.end)
    rows = Rows(images, tokens, lengths, torch.ones(4), labels, np.arange(4), 1.0, [])
    losses = {}
    for weight in (None, 0.25, 1.0):
        config = settings(objective=objective) if weight is None else distill(teacher, weight, objective=objective)
        result, _ = make_objective(data, config, data.tokenizer()).forward(model, rows, bf16=False)
        losses[weight] = result.loss.item()
        assert result.loss >= result.floor
    assert losses[0.25] == pytest.approx(0.75 * losses[None] + 0.25 * losses[1.0], rel=1e-5)


def test_a_teacher_of_another_data_set_or_without_texts_is_refused(data, teacher, tmp_path):
    other = make_dataset(tmp_path / "other", 9)
    with pytest.raises(CoreclipError, match=r"distill.features = .* of the data set \w+, this is \w+; embed this data"):
        train(other, tmp_path / "run", config=distill(teacher), samples=6)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "image.npy").write_bytes((teacher / "image.npy").read_bytes())
    (tmp_path / "half" / "features.json").write_bytes((teacher / "features.json").read_bytes())
    with pytest.raises(CoreclipError, match=r"distill.features = .*half lacks images, texts or logit_scale"):
        train(data, tmp_path / "run", config=distill(tmp_path / "half"), samples=6)
    with pytest.raises(CoreclipError, match=r"distill.weight = 1.5 is not allowed: a share of the loss"):
        distill(teacher, 1.5)


# ----------------------------------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("then", ["the next batch", "a choice of rows", "a choice of pairs"])
def test_a_gradient_that_is_not_finite_names_the_step_and_the_pairs(data, tmp_path, then):
    def blow_up(module, _, output):
        if isinstance(module, torch.nn.LayerNorm) and output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.inf)

    config = settings()
    if then == "a choice of rows":
        train(data, tmp_path / "reference", config=config, samples=12)
        config = replace(config, jest=JestConfig(keep=0.5, reference=str(tmp_path / "reference")))
    if then == "a choice of pairs":
        config = replace(config, data=replace(config.data, batch_size=12), reselect=ReselectConfig(every=1))
    handle = torch.nn.modules.module.register_module_forward_hook(blow_up)
    try:
        with pytest.raises(
            CoreclipError,
            match=r"the gradient's norm is (nan|inf) at step 0 \(batch with the indices \d+, .*train.precision=fp32",
        ):
            train(data, tmp_path / "run", config=config, samples=48)
    finally:
        handle.remove()
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


# ---------------------------------------------------------------------------------------------------------------- temperature


def test_a_temperature_that_has_come_to_its_bound_comes_back():
    config = replace(settings(), train=replace(settings().train, temperature=0.01))
    model = build_model(config, vocab_size=40, seed=0)
    optimiser = make_optimiser(model, config)
    values = []
    for direction in (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        optimiser.zero_grad()
        (direction * model.logit_scale.clamp(max=MAX_LOGIT_SCALE)).backward()
        update(model, optimiser, clip_norm=1.0, rate=0.1)
        values.append(model.logit_scale.item())
    assert max(values) <= MAX_LOGIT_SCALE + 1e-6
    assert values[-1] < MAX_LOGIT_SCALE - 0.05
