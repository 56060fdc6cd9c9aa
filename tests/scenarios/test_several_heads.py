"""Networks with several classifiers: their answer is a sum of them, or each is an answer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from driver_helpers import CLASSES, assert_identical, images, unchanged, weights_of
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import ModelError

X, Y = images(40)
ROWS = X.flatten(1)[:, :12]
NUMBERS = torch.stack((3 + ROWS[:, 0] - ROWS[:, 1], 100 * ROWS[:, 2]), dim=1)
Answer = Callable[[list[Tensor]], Tensor]


class Several(nn.Module):
    """A body and some heads, whose outputs become one."""

    def __init__(self, answer: Answer, heads: int = 2, outputs: int = CLASSES) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.body = nn.Linear(12, 14)
            self.heads = nn.ModuleList(nn.Linear(14, outputs) for _ in range(heads))
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).relu()
        return self.answer([head(features) for head in self.heads])


ANSWERS: dict[str, Answer] = {
    "mean": lambda y: (y[0] + y[1]) / 2,
    "stack": lambda y: torch.stack(y).mean(dim=0),
    "sum": lambda y: y[0] + y[1],
    "weights": lambda y: 0.3 * y[0] + 2.0 * y[1],
}


@pytest.mark.parametrize("head_code", ["onehot", "logistic"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_answer_is_that_of_one_head(answer: str, head_code: str) -> None:
    alone = Several(lambda y: y[0], heads=1)
    model = Several(ANSWERS[answer])
    model.body.load_state_dict(alone.body.state_dict())
    for x in (alone, model):
        report = sylvinit.initialize_(x, (ROWS, Y), head_code=head_code, preset="best")
    # Float32 rounding of two weights in place of one.
    assert torch.allclose(model(ROWS), alone(ROWS), atol=1e-4)
    assert report.head == "heads.1"
    assert [report[f"heads.{i}"].code for i in range(2)] == [head_code] * 2
    said = "heads as well: heads.0; the network's output is a weighted sum of all"
    assert said in report["heads.1"].notes


@pytest.mark.parametrize("head_code", ["targets", "ridge"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_targets_keep_their_units(answer: str, head_code: str) -> None:
    alone = Several(lambda y: y[0], 1, 2)
    model = Several(ANSWERS[answer], 2, 2)
    for x in (alone, model):
        sylvinit.initialize_head_(x, (ROWS, NUMBERS), head_code=head_code)
    one, two = (x(ROWS).detach() for x in (alone, model))
    assert torch.allclose(one, two, atol=1e-4 * float(NUMBERS.abs().max()))


class Tokens(nn.Module):
    """Two heads, each on a token of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.other = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.head(x[:, 0]), self.other(x[:, 1])
        return torch.stack((one, two)) if self.training else (one + two) / 2


def test_each_head_reads_its_own_features() -> None:
    x = ROWS.view(40, 2, 6)
    model = Tokens()
    sylvinit.initialize_head_(model, (x, Y), head_code="onehot")
    for index, name in enumerate(("head", "other")):
        alone = nn.Sequential(nn.Linear(6, CLASSES))
        sylvinit.initialize_head_(alone, (x[:, index], Y), head_code="onehot")
        expected = alone(x[:, index])
        assert torch.allclose(model.get_submodule(name)(x[:, index]), expected, atol=1e-5)


class TokenLabeling(nn.Module):
    """A head on the mean token, and the best of another's scores of all tokens (VOLO)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.head, self.aux = nn.Linear(16, CLASSES), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.body(x).relu())
        return self.head(x.mean(dim=1)) + 0.5 * self.aux(x).max(1)[0]


def test_the_maximum_over_tokens_is_an_answer() -> None:
    x = ROWS.view(40, 2, 6) + torch.eye(CLASSES, 6)[Y][:, None]
    model = TokenLabeling()
    report = sylvinit.initialize_(model, (x, Y), preset="best")
    assert [report[name].code for name in ("head", "aux")] == ["onehot"] * 2
    # 2 / 3 of the solution and 1 / 3: the shares of a sum that is the label's code.
    alone = copy.deepcopy(model)
    alone.forward = lambda x: alone.head(alone.norm(alone.body(x).relu()).mean(dim=1))
    sylvinit.initialize_head_(alone, (x, Y), head="head")
    torch.testing.assert_close(1.5 * model.head.weight, alone.head.weight, atol=1e-4, rtol=1e-4)
    assert float((model(x).argmax(dim=1) == Y).double().mean()) > 0.9


def test_an_ensemble_of_networks() -> None:
    members = nn.ModuleList(Several(lambda y: y[0], heads=1) for _ in range(3))

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = members

        def forward(self, x: Tensor) -> Tensor:
            answers = [member(x) for member in self.members]
            return functools.reduce(torch.add, answers) / len(answers)

    report = sylvinit.initialize_(Ensemble(), (ROWS, Y), preset="best")
    codes = {layer.name: layer.code for layer in report.solved}
    assert [codes[f"members.{i}.heads.0"] for i in range(3)] == ["onehot"] * 3
    assert [codes[f"members.{i}.body"] for i in range(3)] == ["pca"] * 3


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: torch.cat(y, dim=1)[:, CLASSES:],
        lambda y: y[1] - y[0],
        lambda y: y[1] + y[0].relu(),
        lambda y: y[1] * y[0].sigmoid(),
    ],
)
def test_others_have_one_head(answer: Answer) -> None:
    report = sylvinit.initialize_(Several(answer), (ROWS, Y), preset="best")
    assert report.head == "heads.1"
    assert [report[f"heads.{i}"].code for i in range(2)] == ["pca", "onehot"]
    assert not any("heads as well" in note for note in report["heads.1"].notes)


def test_a_head_that_is_left_alone_leaves_the_others() -> None:
    model = Several(ANSWERS["mean"])
    model.heads[1].requires_grad_(False)
    with pytest.warns(sylvinit.SylvinitWarning, match=r"head heads\.1 is not solved: frozen"):
        report = sylvinit.initialize_head_(model, (ROWS, Y))
    assert report.head == "heads.0"
    model = Several(ANSWERS["mean"])
    model.heads[1].requires_grad_(False)
    with unchanged(model), pytest.raises(ModelError, match=r"head heads\.1 is not solved"):
        sylvinit.initialize_head_(model, (ROWS, Y), head="heads.1")
    model.requires_grad_(False)
    with unchanged(model), pytest.raises(ModelError, match=r"head heads\.. is not solved"):
        sylvinit.initialize_head_(model, (ROWS, Y))


def test_a_head_by_name_is_one_of_the_sum() -> None:
    model = Several(ANSWERS["mean"])
    named = copy.deepcopy(model)
    sylvinit.initialize_head_(model, (ROWS, Y))
    assert sylvinit.initialize_head_(named, (ROWS, Y), head="heads.0").head == "heads.0"
    assert_identical(weights_of(model), weights_of(named))


def test_the_choice_of_a_start_is_made_on_one_of_them() -> None:
    report = sylvinit.initialize_(Several(ANSWERS["mean"]), (ROWS, Y))
    alone = sylvinit.initialize_(Several(lambda y: y[0], heads=1), (ROWS, Y))
    assert [x.error for x in report.candidates] == [x.error for x in alone.candidates]
    assert report.head == "heads.1"


class Auxiliary(nn.Module):
    """A segmentation network whose auxiliary classifier is on an earlier layer and runs last."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 9, 3, padding=1)
            self.classifier, self.auxiliary = nn.Conv2d(9, CLASSES, 1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        early = self.stem(x).relu()
        late = self.body(early).relu()
        size = [2 * side for side in x.shape[-2:]]
        out = nn.functional.interpolate(self.classifier(late), size, mode="bilinear")
        return {"out": out, "aux": nn.functional.interpolate(self.auxiliary(early), size)}


@pytest.mark.parametrize("labels", [Y, (X[:, 0] > 0).long()])
def test_auxiliary_classifiers_are_heads(labels: Tensor) -> None:
    model = Auxiliary()
    report = sylvinit.initialize_(model, (X, labels), preset="best", patches="all")
    assert report.head == "classifier"
    assert "heads as well: auxiliary; outputs as well" in report["classifier"].notes
    early = model.stem(X).relu()
    late = model.body(early).relu()
    for features, name in ((early, "auxiliary"), (late, "classifier")):
        alone = nn.Conv2d(features.shape[1], CLASSES, 1)
        given = features.detach(), labels
        sylvinit.initialize_head_(alone, given, head_code="onehot", patches="all")
        head = model.get_submodule(name)
        assert isinstance(head, nn.Conv2d)
        assert torch.allclose(head.weight, alone.weight, atol=1e-5)


def test_one_of_several_outputs_by_name() -> None:
    report = sylvinit.initialize_head_(Auxiliary(), (X, Y), head="auxiliary")
    assert [layer.name for layer in report.solved] == ["auxiliary"]


def test_what_an_output_is_made_of_is_no_head() -> None:
    """A code as wide as the classes, returned beside what is made of it."""

    class Returned(Several):
        def forward(self, x: Tensor) -> Any:
            code = self.body(x)
            return code, self.heads[0](code)

    model = Returned(lambda y: y[0], heads=1)
    model.body, model.heads[0] = nn.Linear(12, CLASSES), nn.Linear(CLASSES, CLASSES)
    report = sylvinit.initialize_(model, (ROWS, Y), preset="best")
    assert [report[name].code for name in ("body", "heads.0")] == ["pca", "onehot"]


@pytest.mark.parametrize("name", ["levit_128s", "deit_tiny_distilled_patch16_224"])
def test_distilled_networks(name: str) -> None:
    timm = pytest.importorskip("timm")
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2} if name.startswith("deit") else {}
    model = timm.create_model(name, num_classes=CLASSES, **sizes)
    x = nn.functional.interpolate(X, size=224)
    report = sylvinit.initialize_head_(model, (x, Y), head_code="logistic")
    heads = [layer.name for layer in report.solved]
    assert len(heads) == 2
    assert report.head in heads
    assert float((model.eval()(x).argmax(dim=1) == Y).float().mean()) > 0.9
