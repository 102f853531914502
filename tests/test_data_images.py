"""Readers of color images, and files made to break them."""

import builtins
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lo_components.data import (
    cifar10,
    cifar100,
    image_dataset,
    image_folder,
    imagenet_downsampled,
    pooled,
    sample_batch,
)

CIFAR10_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def colors(seed, count=3, size=32):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def rows(images):
    """One image in each row, one channel after the other."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def labels_of(seed, count, classes):
    return [int(label) for label in np.random.default_rng(100 + seed).integers(0, classes, count)]


def python2_pickle(data, labels, key=b"labels"):
    """What Python 2's cPickle wrote for the published CIFAR files."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01"
        b"J" + struct.pack("<i", len(data)) + b"J" + struct.pack("<i", data.shape[1]) + b"\x86" + dtype + b"K\x00tb\x89"
        b"T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    )
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}q\x01(" + text(b"data") + array + text(key) + listed + b"u."


def in_protocol(protocol):
    def encoded(data, labels, key=b"labels"):
        return pickle.dumps({key.decode(): labels, "data": data, "filenames": ["a"] * len(labels)}, protocol)

    return encoded


def binary(data, labels, key=b"labels"):
    coarse = [[7]] if key == b"fine_labels" else [[]]
    return b"".join(bytes([*coarse[0], label]) + row.tobytes() for label, row in zip(labels, data, strict=True))


ENCODINGS = {
    "python 2": (python2_pickle, ""),
    **{f"protocol {n}": (in_protocol(n), "") for n in range(2, 6)},
    "binary": (binary, ".bin"),
}


def write_cifar10(folder, encode=python2_pickle, suffix=""):
    folder.mkdir(exist_ok=True, parents=True)
    for seed, name in enumerate(CIFAR10_FILES):
        count = 2 + seed % 2
        data = encode(rows(colors(seed, count)), labels_of(seed, count, 10))
        (folder / f"{name}{suffix}").write_bytes(data)
    return folder


def pack(folder, name):
    """Put everything in `folder` into an archive there."""
    files = list(folder.iterdir())
    with tarfile.open(folder / name, "w:xz") as archive:
        for path in files:
            archive.add(path, path.name)
            shutil.rmtree(path)


@pytest.mark.parametrize("place", [".", "folder", "archive"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_cifar10_in_every_layout(tmp_path, encoding, place):
    encode, suffix = ENCODINGS[encoding]
    archive = "cifar-10-batches-bin" if suffix else "cifar-10-batches-py"
    write_cifar10(tmp_path / (place if place == "." else archive), encode, suffix)
    if place == "archive":
        pack(tmp_path, "cifar-10-python.tar.xz")
    dataset = cifar10(tmp_path)
    train = np.concatenate([colors(seed, 2 + seed % 2) for seed in range(5)])
    assert dataset.num_classes == 10 and dataset.image_shape == (32, 32, 3)
    assert dataset.splits["train"].images.dtype == jnp.uint8
    np.testing.assert_array_equal(dataset.splits["train"].images, train)
    np.testing.assert_array_equal(dataset.splits["test"].images, colors(5))
    np.testing.assert_array_equal(
        dataset.splits["train"].labels, sum((labels_of(seed, 2 + seed % 2, 10) for seed in range(5)), [])
    )
    np.testing.assert_array_equal(dataset.splits["test"].labels, labels_of(5, 3, 10))
    np.testing.assert_array_equal(dataset.mean, train.mean((0, 1, 2)).astype(np.float32))
    np.testing.assert_array_equal(dataset.std, train.std((0, 1, 2)).astype(np.float32))


@pytest.mark.parametrize("encoding", ["python 2", "protocol 4", "binary"])
def test_cifar100_has_the_fine_classes(tmp_path, encoding):
    encode, suffix = ENCODINGS[encoding]
    for seed, name in enumerate(("train", "test")):
        data = encode(rows(colors(seed)), [99, 0, 42 + seed], b"fine_labels")
        (tmp_path / f"{name}{suffix}").write_bytes(data)
    dataset = cifar100(tmp_path)
    assert dataset.num_classes == 100
    np.testing.assert_array_equal(dataset.splits["train"].labels, [99, 0, 42])
    np.testing.assert_array_equal(dataset.splits["test"].labels, [99, 0, 43])
    np.testing.assert_array_equal(dataset.splits["test"].images, colors(1))


def test_an_archive_of_cifar_may_be_damaged_or_a_bomb(tmp_path):
    path = tmp_path / "cifar-10-python.tar.xz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cifar-10-python.tar.xz` is not a complete tar archive"):
        cifar10(tmp_path)
    path.unlink()
    (write_cifar10(tmp_path / "cifar-10-batches-py") / "test_batch").write_bytes(bytes(2**25))
    pack(tmp_path, path.name)
    with pytest.raises(ValueError, match="claims to unpack to"):
        cifar10(tmp_path)


def test_color_batches_are_normalized_by_channel(tmp_path):
    dataset = cifar10(write_cifar10(tmp_path))
    images, labels = sample_batch(dataset, 50, key=jax.random.key(0))
    train = dataset.splits["train"]
    pixels = np.asarray(train.images, np.float64)
    table = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    index = np.abs(np.asarray(images)[:, None] - table[None]).max(axis=(2, 3, 4)).argmin(axis=1)
    np.testing.assert_allclose(images, table[index], atol=1e-5)
    np.testing.assert_array_equal(labels, np.asarray(train.labels)[index])


def test_channel_statistics_of_fractional_pixels_and_of_constant_channels():
    images = np.random.default_rng(0).uniform(size=(4, 3, 3, 2))
    dataset = image_dataset({"train": (images, np.zeros(4, int))}, num_classes=1, name="x")
    np.testing.assert_allclose([dataset.mean, dataset.std], [images.mean((0, 1, 2)), images.std((0, 1, 2))])
    images[..., 1] = 0.5
    with pytest.raises(ValueError, match="^x: all training pixels of one channel are equal"):
        image_dataset({"train": (images, np.zeros(4, int))}, num_classes=1, name="x")


def test_a_missing_folder_or_file_of_cifar_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="There is no folder `.*nowhere`; expected one with the batches of CIFAR-10"
    ):
        cifar10(tmp_path / "nowhere")
    (write_cifar10(tmp_path / "some") / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="`.*some` has neither `data_batch_3` nor `data_batch_3.bin`"):
        cifar10(tmp_path / "some")


IMAGES = rows(colors(0))
BAD_BATCHES = {
    "wrong label": ({"data": IMAGES, "labels": [0, 10, 1]}, "has labels from 0 to 10; expected 0 to 9"),
    "negative label": ({"data": IMAGES, "labels": [0, -1, 1]}, "has labels from -1 to 1; expected 0 to 9"),
    "fractional label": ({"data": IMAGES, "labels": [0, 0.5, 1]}, "the labels are not a vector of integers"),
    "huge label": ({"data": IMAGES, "labels": [0, 2**80, 1]}, "the labels are not a vector of integers"),
    "labels of classes": ({"data": IMAGES, "labels": ["cat", "dog", "cat"]}, "not a vector of integers"),
    "nested labels": ({"data": IMAGES, "labels": [[0], [1], [2]]}, "not a vector of integers"),
    "one-hot labels": ({"data": IMAGES, "labels": np.eye(3, dtype=np.int64)}, "not a vector of integers"),
    "no labels": ({"data": IMAGES, "fine_labels": [0, 1, 2]}, "it has no `labels`, only: data, fine_labels"),
    "no data": ({"labels": [0, 1, 2]}, "it has no `data`"),
    "other size": ({"data": IMAGES[:, :3000], "labels": [0, 1, 2]}, "rows of 3000 bytes; images of size 32 have 3072"),
    "floats": ({"data": IMAGES.astype(np.float32), "labels": [0, 1, 2]}, "`data` is not a matrix of bytes"),
    "images": ({"data": colors(0), "labels": [0, 1, 2]}, "`data` is not a matrix of bytes"),
    "a list": ({"data": IMAGES.tolist()[0], "labels": [0, 1, 2]}, "`data` is not a matrix of bytes"),
    "not a dictionary": ([IMAGES, [0, 1, 2]], "it does not contain a dictionary"),
    "other keys": ({0: IMAGES, 1: [0, 1, 2]}, "a dictionary whose keys are not strings"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_batch_with_other_contents_is_named(tmp_path, case):
    content, message = BAD_BATCHES[case]
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(ValueError, match=f"`{tmp_path}/data_batch_2`.*{message}"):
        cifar10(tmp_path)


def test_counts_that_do_not_match(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(python2_pickle(IMAGES, [1, 2]))
    with pytest.raises(ValueError, match=f"`{tmp_path}/test_batch` has 3 images but 2 labels"):
        cifar10(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 3073 * 3 - 1])
def test_a_binary_batch_cut_short_is_named(tmp_path, length):
    write_cifar10(tmp_path, binary, ".bin")
    path = tmp_path / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        ValueError, match=f"`{path}` has {length} bytes, which is not a multiple of the record size 3073"
    ):
        cifar10(tmp_path)


@pytest.mark.parametrize("encoding", ["python 2", "protocol 4", "protocol 5"])
def test_a_pickle_cut_short_is_named(tmp_path, encoding):
    write_cifar10(tmp_path)
    path, whole = tmp_path / "data_batch_1", ENCODINGS[encoding][0](IMAGES, [1, 2, 3])
    for length in [*range(0, 60), *range(60, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"`{path}` is not a pickle of arrays and lists"):
            cifar10(tmp_path)


class Calls:
    """An object whose pickle calls `function` when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def with_marker(marker):
    """Values whose pickles would write the file `marker`, or do worse, if anything in them were run."""
    write = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    objects = np.empty(3, object)
    objects[:] = [Calls(os.system, f"touch {marker}")] * 3
    return {
        "os.system": Calls(os.system, f"touch {marker}"),
        "builtins.eval": Calls(builtins.eval, write),
        "builtins.exec": Calls(builtins.exec, write),
        "builtins.open": Calls(builtins.open, str(marker), "w"),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "getattr": Calls(builtins.getattr, "text", "upper"),
        "numpy.load": Calls(np.load, str(marker)),
        "a scalar of NumPy": np.float64(1.0),
        "an array of objects": objects,
        "an array of strings": np.array(["a", "b"]),
        "a class of ours": Calls,
        "a set": {1, 2},
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("case", with_marker(""))
@pytest.mark.parametrize("key", ["data", "filenames"])
def test_a_hostile_pickle_runs_nothing(tmp_path, case, protocol, key):
    folder, marker = write_cifar10(tmp_path / "cifar"), tmp_path / "marker"
    path = folder / "data_batch_1"
    content = {"data": IMAGES, "labels": [0, 1, 2], key: with_marker(marker)[case]}
    path.write_bytes(pickle.dumps(content, protocol))
    if case == "an array of strings" and key == "filenames" and protocol > 1:
        cifar10(folder)  # never turned into an array
    else:
        with pytest.raises(ValueError, match=f"`{path}`"):
            cifar10(folder)
    assert not marker.exists()


def test_the_hostile_pickles_are_hostile(tmp_path):
    """Loaded by `pickle` they do write the file."""
    for case in ("os.system", "builtins.eval", "builtins.exec", "builtins.open"):
        marker = tmp_path / case
        result = pickle.loads(pickle.dumps({"data": with_marker(marker)[case]}))
        getattr(result["data"], "close", lambda: None)()
        assert marker.exists()


def bytes_of(text):
    return b"U" + bytes([len(text)]) + text


def array_of_shape(*shape):
    """A pickled array of 10 bytes that claims another shape."""
    sizes = b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01(" + sizes + b"t"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U\x0a0123456789tb"
    )


def dictionary(value):
    return b"\x80\x02}(U\x06labels]U\x04data" + value + b"u."


HOSTILE_BYTES = {
    "lists within lists": (b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".", "far more operations"),
    "lists, not too many": (dictionary(b"]" * 9000 + b"a" * 900), "is not"),
    "marks": (b"\x80\x02" + b"(" * 10**6 + b".", "far more operations"),
    "a tuple that doubles": (b"\x80\x02}(" + b")" + b"q\x01h\x01\x86" * 60 + b"K\x01u.", "keys are not strings"),
    "a deep key": (b"\x80\x02}(" + b")" + b"\x85" * 9000 + b"K\x01u.", "keys are not strings"),
    "a list in itself": (b"\x80\x02}(U\x04dataK\x01U\x06labels]q\x01h\x01au.", "`data` is not a matrix"),
    "a long string that is not there": (b"\x80\x02T\xff\xff\xff\x7f.", "bytes"),
    "a string of negative length": (b"\x80\x02T\xff\xff\xff\xff.", "byte"),
    "exabytes": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f.", "bytes"),
    "exabytes to change": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x0f.", "bytes"),
    "a frame of exabytes": (b"\x80\x04\x95" + b"\xff" * 8 + b"N.", "does not contain a dictionary"),
    "a memo of gigabytes": (b"\x80\x02Nr\xff\xff\xff\x7f.", "does not contain a dictionary"),
    "a memo that is empty": (b"\x80\x02h\x07.", "7"),
    "an array larger than its file": (dictionary(array_of_shape(2**40, 3072)), "does not match its shape"),
    "a shape that overflows": (dictionary(array_of_shape(2**62, 4)), "does not match its shape"),
    "a negative shape": (dictionary(array_of_shape(-1, -10)), "does not match its shape"),
    "a million nested tuples": (b"\x80\x02}(" + b")" + b"\x85" * 10**6 + b"K\x01u.", "far more operations"),
    "a set of tuples that double": (b"\x80\x04\x8f(" + b")" + b"q\x01h\x01\x86" * 60 + b"\x90.", "operation EMPTY_SET"),
    "an array of shape 10**12": (
        dictionary(b"cnumpy\nndarray\n(\x8a\x06\x00\x10\xa5\xd4\xe8\x00\x85tR"),
        "do not need",
    ),
    "an empty array of another class": (
        dictionary(b"cnumpy.core.multiarray\n_reconstruct\ncos\nsystem\nK\x00\x85U\x01b\x87R"),
        "`os.system`",
    ),
    "a codec that decompresses": (dictionary(b"c_codecs\nencode\nU\x01aU\x0azlib_codec\x86R"), "do not need"),
    "a codec that is imported": (dictionary(b"c_codecs\nencode\nU\x01aU\x04idna\x86R"), "do not need"),
    "an array of a matrix type": (dictionary(b"cnumpy\nmatrix\n)R"), "`numpy.matrix`"),
    "an array without contents": (
        dictionary(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"),
        "array",
    ),
    "state for a list": (dictionary(b"]}b"), "sets the state"),
    "state for a name": (dictionary(b"cnumpy\ndtype\n}b"), "sets the state"),
    "a call of a string": (dictionary(b"U\x01aU\x01b\x85R"), "calls a function that arrays do not need"),
    "a call of ndarray": (dictionary(b"cnumpy\nndarray\n(K\x05\x85tR"), "calls a function that arrays do not need"),
    "appending to a tuple": (dictionary(b")K\x01a"), "appends"),
    "items for a list": (dictionary(b"]U\x01aK\x01s"), "dictionary"),
    "a new object": (b"\x80\x02cos\nsystem\n)\x81.", "`os.system`"),
    "an instance": (b"(ios\nsystem\n.", "operation INST"),
    "a persistent id": (b"\x80\x02U\x01aQ.", "operation BINPERSID"),
    "an extension": (b"\x80\x02\x82\x01.", "operation EXT1"),
    "a buffer from elsewhere": (b"\x80\x05\x97.", "operation NEXT_BUFFER"),
    "a name by parts": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "`os.system`"),
    "a name of parts that are no text": (b"\x80\x04]" + b"q\x01h\x01\x86" * 60 + b"]\x93.", "a name that is not text"),
    "too few values": (b"\x80\x02K\x01\x86.", "more values from its stack"),
    "an end without a start": (b"\x80\x02t.", "pop"),
    "nothing at the end": (b"\x80\x02.", "pop"),
    "no end": (b"\x80\x02}", "STOP"),
    "an unknown operation": (b"\x80\x02\xff.", "xff"),
    "not a pickle": (b"\x1f\x8b something zipped", "opcode"),
    "nothing": (b"", "it is empty"),
}


@pytest.mark.parametrize("case", HOSTILE_BYTES)
def test_pickles_made_by_hand_are_refused_by_name(tmp_path, case):
    data, message = HOSTILE_BYTES[case]
    path = write_cifar10(tmp_path) / "data_batch_1"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"`{path}`.*{message}"):
        cifar10(tmp_path)


def test_no_flipped_byte_of_a_pickle_raises_anything_else(tmp_path):
    path = write_cifar10(tmp_path) / "data_batch_1"
    whole = python2_pickle(IMAGES, [1, 2, 3])
    start = whole.index(IMAGES.tobytes())
    refused = 0
    for position in [*range(start), *range(start + IMAGES.size, len(whole))]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        try:
            cifar10(tmp_path)
        except ValueError as error:
            assert f"`{path}`" in str(error) or f"{tmp_path}: " in str(error)
            refused += 1
    assert refused > 100


def write_imagenet(folder, layout, size=4, batches=2):
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate([*(f"train_data_batch_{i + 1}" for i in range(batches)), "val_data"]):
        images, labels = rows(colors(seed, size=size)), [1, 1000, 1 + seed]
        content = {"data": images, "labels": labels}
        if name != "val_data":
            content["mean"] = images.mean(axis=0)
        if layout == "pickle":
            (folder / name).write_bytes(pickle.dumps(content, 4))
        else:
            (np.savez if layout == "npz" else np.savez_compressed)(folder / f"{name}.npz", **content)
    return folder


@pytest.mark.parametrize("layout", ["pickle", "npz", "compressed npz"])
def test_downsampled_imagenet_in_every_layout(tmp_path, layout):
    dataset = imagenet_downsampled(write_imagenet(tmp_path, layout), 4, num_batches=2)
    assert dataset.num_classes == 1000 and dataset.image_shape == (4, 4, 3)
    np.testing.assert_array_equal(
        dataset.splits["train"].images, np.concatenate([colors(0, size=4), colors(1, size=4)])
    )
    np.testing.assert_array_equal(dataset.splits["test"].images, colors(2, size=4))
    np.testing.assert_array_equal(dataset.splits["train"].labels, [0, 999, 0, 0, 999, 1])
    np.testing.assert_array_equal(dataset.splits["test"].labels, [0, 999, 2])


@pytest.mark.parametrize("layout", ["pickle", "npz"])
def test_downsampled_imagenet_names_the_file_that_is_wrong(tmp_path, layout):
    write_imagenet(tmp_path, layout)
    with pytest.raises(FileNotFoundError, match="neither `train_data_batch_3.npz` nor `train_data_batch_3`"):
        imagenet_downsampled(tmp_path, 4)
    with pytest.raises(ValueError, match="train_data_batch_1.*rows of 48 bytes; images of size 8 have 192"):
        imagenet_downsampled(tmp_path, 8, num_batches=2)
    with pytest.raises(ValueError, match="`num_batches` must be from 1 to 10, got 11"):
        imagenet_downsampled(tmp_path, 4, num_batches=11)
    for labels, message in (([1, 2, 1001], "from 1 to 1001; expected 1 to 1000"), ([0, 1, 2], "from 0 to 2")):
        content = {"data": rows(colors(0, size=4)), "labels": labels}
        np.savez(tmp_path / "val_data.npz", **content)
        with pytest.raises(ValueError, match=f"`{tmp_path}/val_data.npz` has labels {message}"):
            imagenet_downsampled(tmp_path, 4, num_batches=2)
    with pytest.raises(FileNotFoundError, match="There is no folder `.*nowhere`"):
        imagenet_downsampled(tmp_path / "nowhere")


def npy(array, header_shape=None):
    """An npy file, with another shape in its header if given."""
    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, {**header, "shape": header_shape or array.shape})
    return file.getvalue() + array.tobytes()


def npz(compression=zipfile.ZIP_DEFLATED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def saved(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


LABELS = np.array([1, 2, 3])
SMALL = rows(colors(0, size=4))
BAD_NPZ = {
    "objects": (
        saved(data=SMALL, labels=np.array([Calls(os.system, "false"), 1, 2], object)),
        "array of Python objects",
    ),
    "no labels": (saved(data=SMALL), "it has no `labels`, only: data"),
    "cut short": (saved(data=SMALL, labels=LABELS)[:-30], "npz file"),
    "not a zip file": (b"PK" + bytes(100), "npz file"),
    "nothing": (b"", "npz file"),
    "not npy files": (npz(data=b"abc", labels=b"def"), "npz file"),
    "a shape too large": (npz(data=npy(SMALL, (10**12, 48)), labels=npy(LABELS)), "does not fit its 144 bytes"),
    "a shape too small": (npz(data=npy(SMALL, (1, 48)), labels=npy(LABELS)), "does not fit its 144 bytes"),
    "zeros without end": (npz(data=npy(np.zeros((10**5, 48), np.uint8)), labels=npy(LABELS)), "it is not unpacked"),
    "another compression": (npz(zipfile.ZIP_LZMA, data=npy(SMALL), labels=npy(LABELS)), "not one that NumPy uses"),
    "a header that is code": (
        npz(data=b"\x93NUMPY\x01\x00\x26\x00{'shape': __import__('os').getcwd(), }\n", labels=npy(LABELS)),
        "npz file",
    ),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_malformed_npz_file_is_named(tmp_path, case):
    data, message = BAD_NPZ[case]
    path = write_imagenet(tmp_path, "npz", batches=1) / "train_data_batch_1.npz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"`{path}`.*{message}"):
        imagenet_downsampled(tmp_path, 4, num_batches=1)


def write_pictures(folder, **classes):
    """`count` PNG files in a folder for each class."""
    Image = pytest.importorskip("PIL.Image")
    for seed, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(colors(seed, count, size=4)):
            Image.fromarray(image).save(folder / name / f"{i}.png")
    return folder


def test_an_image_folder_has_a_class_for_each_subfolder(tmp_path):
    write_pictures(tmp_path, cat=2, ant=3)
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    dataset = image_folder(tmp_path, 4)
    assert dataset.num_classes == 2 and set(dataset.splits) == {"train"}
    np.testing.assert_array_equal(dataset.splits["train"].labels, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(
        dataset.splits["train"].images, np.concatenate([colors(1, 3, size=4), colors(0, 2, size=4)])
    )
    boxes = colors(1, 3, size=4).reshape(3, 2, 2, 2, 2, 3).mean((2, 4))
    # Pillow resizes rows and columns in turn and rounds each time.
    np.testing.assert_allclose(image_folder(tmp_path, 2).splits["train"].images[:3], boxes, atol=1.0)
    assert image_folder(tmp_path, 5).image_shape == (5, 5, 3)


def test_an_image_folder_with_splits(tmp_path):
    write_pictures(tmp_path / "train", cat=2, ant=3)
    write_pictures(tmp_path / "test", cat=1)
    dataset = image_folder(tmp_path, 4)
    assert {name: len(split.labels) for name, split in dataset.splits.items()} == {"train": 5, "test": 1}
    np.testing.assert_array_equal(dataset.splits["test"].labels, [1])
    write_pictures(tmp_path / "val", dog=1)
    with pytest.raises(ValueError, match=f"`{tmp_path}/val/dog` is a class that the training images do not have"):
        image_folder(tmp_path, 4)


def test_a_class_may_be_called_train(tmp_path):
    dataset = image_folder(write_pictures(tmp_path, train=1, car=2), 4)
    np.testing.assert_array_equal(dataset.splits["train"].labels, [0, 0, 1])


def test_gray_and_transparent_pictures_become_color(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    write_pictures(tmp_path, a=1)
    gray = colors(3, 1, size=4)[0, :, :, 0]
    Image.fromarray(gray).save(tmp_path / "a" / "gray.png")
    Image.fromarray(np.concatenate([colors(4, 1, size=4)[0], gray[..., None]], axis=2)).save(
        tmp_path / "a" / "rgba.png"
    )
    images = image_folder(tmp_path, 4).splits["train"].images
    np.testing.assert_array_equal(images[1], np.repeat(gray[..., None], 3, axis=2))
    np.testing.assert_array_equal(images[2], colors(4, 1, size=4)[0])


def test_a_picture_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    path = write_pictures(tmp_path, a=2) / "a" / "1.png"
    whole = path.read_bytes()
    for content in (whole[:80], whole[:10], b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"`{path}` is not a complete image"):
            image_folder(tmp_path, 4)
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="is not a complete image .*decompression bomb"):
        image_folder(tmp_path, 4)


def test_an_image_folder_without_images_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder `.*nowhere`"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"`{tmp_path}` has no subfolders"):
        image_folder(tmp_path)
    write_pictures(tmp_path, a=1)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=f"`{tmp_path}/b` has no images"):
        image_folder(tmp_path)
    with pytest.raises(ValueError, match="`size` must be at least 1, got 0"):
        image_folder(tmp_path, 0)


def test_an_image_folder_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install lo-components\[data\]"):
        image_folder(tmp_path)


def test_pooled_images_are_means_of_blocks_with_equal_margins_of_zeros():
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3)).astype(np.uint8)
    found = pooled(images, 3)
    assert (found.shape, found.dtype) == ((2, 3, 3, 3), np.float32)
    np.testing.assert_allclose(found[:, 0, 1], images[:, :2, 2:4].mean((1, 2)), rtol=1e-6)
    padded = np.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)))
    np.testing.assert_allclose(pooled(images[..., 0], 4)[:, 3, 0], padded[:, 6:, :2].mean((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(pooled(images, 6), images)


@pytest.mark.parametrize(
    "shape, size, message",
    [
        ((2, 6, 5), 3, r"must be square.*got \(2, 6, 5\)"),
        ((2, 36), 3, "must be square"),
        ((2, 6, 6), 0, "between 1 and 6.*got 0"),
        ((2, 6, 6), 7, "between 1 and 6.*got 7"),
        ((2, 7, 7), 4, "`size` 4 needs unequal margins"),
    ],
)
def test_what_cannot_be_pooled_is_named(shape, size, message):
    with pytest.raises(ValueError, match=message):
        pooled(np.zeros(shape), size)
