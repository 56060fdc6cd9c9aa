from __future__ import annotations

import codecs
import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sylvinit.errors import DataError, LabelError, OptionError
from sylvinit.io.datasets import (
    few_per_class,
    load_cifar10,
    load_digits,
    load_tensors,
    normalize_cifar10,
)
from sylvinit.io.safe_pickle import load_plain_dict

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
LABELS = [3, 1, 4, 1, 5, 9]


def batch(**changes: Any) -> dict[Any, Any]:
    content = {b"data": IMAGES.reshape(6, -1), b"labels": list(LABELS), b"batch_label": b"test"}
    content.update({key.encode(): value for key, value in changes.items()})
    return content


def write_batch(root: Path, name: str, content: object, protocol: int = 2) -> Path:
    root.mkdir(exist_ok=True)
    path = root / name
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "cifar-10-batches-py"
    write_batch(root, "data_batch_1", batch())
    write_batch(root, "data_batch_3", batch(labels=[0] * 6), protocol=5)
    write_batch(root, "test_batch", batch(labels=[7] * 6), protocol=4)
    return root


# ------------------------------------------------------------------------------------- CIFAR-10


@pytest.mark.parametrize("inside", [True, False])
def test_cifar10_reads_the_batches_there_are(folder: Path, inside: bool) -> None:
    where = folder if inside else folder.parent
    images, labels = load_cifar10(where, train=True)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    np.testing.assert_array_equal(images.numpy(), np.concatenate([IMAGES, IMAGES]))
    assert labels.tolist() == LABELS + [0] * 6
    assert load_cifar10(where, train=False).labels.tolist() == [7] * 6


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_protocol_and_memory_order(tmp_path: Path, protocol: int, order: Any) -> None:
    write_batch(
        tmp_path, "test_batch", batch(data=np.array(IMAGES.reshape(6, -1), order=order)), protocol
    )
    np.testing.assert_array_equal(load_cifar10(tmp_path, train=False).inputs.numpy(), IMAGES)


def test_pickle_of_python_2() -> None:
    # As cPickle of Python 2 wrote the official files: byte strings, names of the old NumPy.
    raw = (
        b"\x80\x02}(U\x06labels]K\x07aU\x04datacnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01K\x02\x86cnumpy\ndtype\n"
        b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x05\xfftbu."
    )
    content = load_plain_dict(raw, "here")
    assert content["labels"] == [7]
    np.testing.assert_array_equal(np.array(content["data"]), [[5, 255]])


class Attack:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "attack",
    [
        Attack(os.system, "touch hacked"),
        Attack(subprocess.run, ["touch", "hacked"]),
        Attack(eval, "open('hacked', 'w')"),
        Attack(np.ndarray, (2**40,)),  # would allocate a terabyte
        Attack(np.zeros, 3),
        Attack(codecs.encode, "text", "idna"),  # an admitted name with a codec that is not
        Attack(np.dtype, "O"),
        Attack(np.dtype, "f8"),
        Attack(getattr, dict, "get"),
        OrderedDict(labels=[]),
        np.array([{}], dtype=object),
        np.zeros(2, dtype=np.float64),
    ],
    ids=range(12),
)
def test_hostile_pickles_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: object, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    write_batch(tmp_path, "test_batch", batch(data=attack), protocol)
    with pytest.raises(DataError, match=r"test_batch.*Download the file again"):
        load_cifar10(tmp_path, train=False)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02cnumpy\ndtype\n(U\x08__call__K\x00u}b.",  # no setting of attributes on a symbol
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo index that would allocate 32 GiB
        b"\x80\x04" + b")\x85" * 200_000 + b".",  # nesting that overflows the C stack
        b"\x80\x02cbuiltins\neval\n.",
        b"\x80\x02cnumpy\ndtype\n}b.",
        b"\x80\x02c\x1b[2J\n" + b"x" * 100_000 + b"\n.",  # terminal codes in a name
        b"",
        b".",
        b"not a pickle",
    ],
    ids=range(9),
)
def test_hostile_opcodes_are_refused(raw: bytes) -> None:
    with pytest.raises(DataError) as caught:
        load_plain_dict(raw, "here")
    assert len(str(caught.value)) < 500
    assert "\x1b" not in str(caught.value)


def test_truncated_pickles_are_refused(folder: Path) -> None:
    path = folder / "test_batch"
    raw = path.read_bytes()
    for length in [0, 1, 20, len(raw) // 2, len(raw) - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises(DataError, match="cannot be read"):
            load_cifar10(folder, train=False)


def test_flipped_bytes_never_escape_as_another_error(folder: Path) -> None:
    path = folder / "test_batch"
    raw = path.read_bytes()
    random = np.random.default_rng(1)
    head = np.flatnonzero(np.frombuffer(raw[:400], np.uint8) > 0)
    refused = 0
    for _ in range(300):
        changed = bytearray(raw)
        for position in random.choice(head, 3):
            changed[position] = random.integers(256)
        path.write_bytes(bytes(changed))
        try:
            load_cifar10(folder, train=False)
        except DataError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": IMAGES.reshape(6, -1)[:, :-1]}, r"uint8 \(N, 3072\), got shape \(6, 3071\)"),
        ({"data": IMAGES}, r"got shape \(6, 3, 32, 32\)"),
        ({"data": b"bytes"}, "got bytes"),
        ({"labels": LABELS[:-1]}, "expected 6 labels"),
        ({"labels": [*LABELS[:-1], 10]}, "labels from 0 to 9"),
        ({"labels": [*LABELS[:-1], -1]}, "labels from 0 to 9"),
        ({"labels": [*LABELS[:-1], True]}, "list of integers"),
        ({"labels": "333333"}, "list of integers"),
    ],
)
def test_wrong_contents_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_batch(tmp_path, "data_batch_1", batch(**changes))
    with pytest.raises(DataError, match=message):
        load_cifar10(tmp_path, train=True)


def test_missing_keys_and_files_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="neither data_batch_"):
        load_cifar10(tmp_path / "nowhere", train=True)
    (folder / "test_batch").unlink()
    with pytest.raises(DataError, match="at least one file test_batch"):
        load_cifar10(folder, train=False)
    write_batch(folder, "test_batch", {"data": IMAGES.reshape(6, -1), "fine_labels": LABELS})
    with pytest.raises(DataError, match=r"'labels'.* missing.*not CIFAR-100"):
        load_cifar10(folder, train=False)
    write_batch(folder, "test_batch", ["a", "list"])
    with pytest.raises(DataError, match="holds a list"):
        load_cifar10(folder, train=False)


def test_real_cifar10(cifar10_folder: Path) -> None:
    images, labels = load_cifar10(cifar10_folder, train=False)
    assert images.shape == (10_000, 3, 32, 32)
    assert labels.bincount().tolist() == [1000] * 10
    normalized = normalize_cifar10(images)
    assert normalized.mean().abs() < 0.05
    assert abs(normalized.std() - 1) < 0.05


def test_normalize_cifar10() -> None:
    images = torch.from_numpy(IMAGES)
    normalized = normalize_cifar10(images)
    expected = (IMAGES[2, 1, 5, 7] / 255 - 0.4822) / 0.2435
    assert normalized.dtype == torch.float32
    assert normalized[2, 1, 5, 7].item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(DataError, match=r"expected uint8 \(N, 3, H, W\), got torch.float32"):
        normalize_cifar10(images.float())


# ----------------------------------------------------------------------- choice of samples, digits


def test_few_per_class_is_balanced_repeatable_and_local() -> None:
    labels = torch.tensor([2, 0, 1] * 20)
    state = torch.get_rng_state()
    indices = few_per_class(labels, 5, seed=3)
    assert labels[indices].bincount().tolist() == [5, 5, 5]
    assert indices.tolist() == sorted(set(indices.tolist()))
    torch.testing.assert_close(indices, few_per_class(labels, 5, seed=3))
    assert indices.tolist() != few_per_class(labels, 5, seed=4).tolist()
    torch.testing.assert_close(state, torch.get_rng_state())


def test_few_per_class_refuses() -> None:
    with pytest.raises(LabelError, match="class 1 has 1 samples, fewer than count=2"):
        few_per_class(torch.tensor([0, 0, 1]), 2, seed=0)
    with pytest.raises(OptionError, match="at least 1, got 0"):
        few_per_class(torch.tensor([0]), 0, seed=0)
    with pytest.raises(LabelError, match="expected integer labels"):
        few_per_class(torch.tensor([0.0]), 1, seed=0)


def test_digits_are_split_once_and_for_all() -> None:
    train, test = load_digits()
    assert train.inputs.shape == (1000, 1, 8, 8)
    assert test.inputs.shape == (797, 1, 8, 8)
    assert train.inputs.dtype == torch.float32
    assert train.labels.dtype == torch.int64
    assert train.inputs.mean().abs() < 1e-5
    assert train.labels.bincount().min() >= 95
    torch.testing.assert_close(load_digits().test.inputs, test.inputs)


# ------------------------------------------------------------------------------------ load_tensors

X = np.random.default_rng(2).normal(size=(5, 3))
Y = np.array([0, 1, 2, 1, 0])


def test_load_npy(tmp_path: Path) -> None:
    for dtype in ("<f8", ">f4", "i4", "u2", "f2"):
        np.save(tmp_path / "x.npy", X.astype(dtype))
        inputs, labels = load_tensors(tmp_path / "x.npy")
        assert labels is None
        np.testing.assert_array_equal(inputs.numpy(), X.astype(dtype))


@pytest.mark.parametrize("names", [("x", "y"), ("inputs", "labels"), ("images", "y")])
def test_load_npz_and_safetensors(tmp_path: Path, names: tuple[str, str]) -> None:
    x, y = names
    arrays: dict[str, Any] = {x: X, y: Y.astype(np.int32), "note": np.array("text")}
    np.savez(tmp_path / "d.npz", **arrays)
    save_file({x: torch.from_numpy(X), y: torch.from_numpy(Y)}, tmp_path / "d.safetensors")
    for name in ("d.npz", "d.safetensors"):
        inputs, labels = load_tensors(tmp_path / name)
        assert labels is not None
        assert labels.dtype == torch.int64
        np.testing.assert_array_equal(inputs.numpy(), X)
        np.testing.assert_array_equal(labels.numpy(), Y)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_load_torch(tmp_path: Path, suffix: str) -> None:
    x, y = torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y)
    for content, labeled in [(x, False), ((x, y), True), ([x, y], True), ({"x": x, "y": y}, True)]:
        path = tmp_path / f"d{suffix}"
        torch.save(content, path)
        inputs, labels = load_tensors(path)
        assert not inputs.requires_grad
        assert (labels is not None) == labeled
        np.testing.assert_array_equal(inputs.numpy(), X)


def test_uint8_images_are_scaled(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=IMAGES, labels=np.array(LABELS))
    inputs, _ = load_tensors(tmp_path / "d.npz")
    np.testing.assert_allclose(inputs.numpy(), IMAGES / 255, rtol=1e-6)


def test_load_tensors_reads_cifar10_folders(folder: Path) -> None:
    inputs, labels = load_tensors(folder)
    assert labels is not None
    assert labels.tolist() == LABELS + [0] * 6
    torch.testing.assert_close(inputs[:6], normalize_cifar10(torch.from_numpy(IMAGES)))


@pytest.mark.parametrize(
    "y", [np.zeros((5, 3, 3), np.uint8), np.zeros((5, 2)), np.zeros(5, np.float32), Y > 1]
)
def test_labels_of_other_forms(tmp_path: Path, y: np.ndarray) -> None:
    np.savez(tmp_path / "y.npz", x=X, y=y)
    _, labels = load_tensors(tmp_path / "y.npz")
    assert labels is not None
    assert labels.shape == y.shape
    assert labels.dtype == (torch.int64 if y.dtype == np.uint8 else torch.from_numpy(y).dtype)


def test_load_tensors_refuses(tmp_path: Path) -> None:
    def refused(name: str, message: str, kind: type[DataError] = DataError) -> None:
        with pytest.raises(kind, match=message):
            load_tensors(tmp_path / name)

    refused("x.npy", "no such file")
    refused("x.csv", r"expected a file ending in \.npy")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused("object.npy", "cannot be read as .npy")
    np.save(tmp_path / "text.npy", np.array(["a"]))
    refused("text.npy", "array of numbers, got dtype <U1")
    np.save(tmp_path / "scalar.npy", np.array(1.0))
    refused("scalar.npy", "got a single number")
    np.savez(tmp_path / "keys.npz", a=X)
    refused("keys.npz", "expected inputs under one of the keys")
    np.savez(tmp_path / "two.npz", x=X, inputs=X)
    refused("two.npz", "expected one of the keys")
    np.savez(tmp_path / "one.npz", x=X, y=np.array(1.0))
    refused("one.npz", "expected 5 labels, classes or targets", LabelError)
    np.savez(tmp_path / "count.npz", x=X, y=Y[:-1])
    refused("count.npz", r"expected 5 labels, .* got torch.int64 \(4,\)", LabelError)
    torch.save((torch.zeros(1),) * 3, tmp_path / "three.pt")
    refused("three.pt", r"pair \(inputs, labels\), got 3 items")
    torch.save({"x": "text"}, tmp_path / "text.pt")
    refused("text.pt", "expected tensors, got str")
    torch.save(torch.eye(2).to_sparse(), tmp_path / "sparse.pt")
    refused("sparse.pt", "expected dense tensors")
    (tmp_path / "hostile.pt").write_bytes(pickle.dumps(Attack(os.system, "touch hacked"), 2))
    refused("hostile.pt", "cannot be read as .pt")
    assert not Path("hacked").exists()


@pytest.mark.parametrize("name", ["d.npy", "d.npz", "d.pt", "d.safetensors"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    x = np.ones((100, 3))
    match path.suffix:
        case ".npy":
            np.save(path, x)
        case ".npz":
            np.savez(path, x=x)
        case ".pt":
            torch.save({"x": torch.from_numpy(x)}, path)
        case _:
            save_file({"x": torch.from_numpy(x)}, path)
    raw = path.read_bytes()
    for length in (0, 10, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        with pytest.raises(DataError, match="cannot be read"):
            load_tensors(path)


def test_a_header_that_promises_terabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 8)}
        )
    with pytest.raises(DataError, match="cannot be read"):
        load_tensors(path)
