"""Readers and writers of other libraries' weights, on published files and on files made by hand."""

import codecs
import io
import json
import pickle
import random
import re
import struct
import sys
import time
import tracemalloc
import types
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import Watch, load_golden, published, run_python

from lo_components import interop, recipes, weights
from lo_components.optimizers import ClippedByValue, Scaled
from lo_components.schedules import LossBuffer
from lo_components.weights import CheckpointError, read_arrays, write_arrays

# Files made by hand, without flax and PyTorch.


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


TREE = {
    "first": {"~": {"w": normal(3, 4), "b": normal(4)}},
    "net/linear": {"w": normal(1, 5, 2), "wide": normal(1, 130, dtype=np.float16), "scale": np.array(0.25, np.float32)},
    "half": {"a": normal(3, dtype=np.float16), "b": normal(3, dtype=jnp.bfloat16), "c": normal(5, dtype=np.float64)},
    "count": np.arange(40, dtype=np.int64),
    "none": np.zeros((0, 300), np.float32),
}


def flat(tree, prefix=""):
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return found


FLAT = flat(TREE)


def packed(kind, size):
    """The header of a msgpack value, in the fewest bytes."""
    fixed, limit, *longer = {
        "map": (0x80, 16, (0xDE, 2), (0xDF, 4)),
        "text": (0xA0, 32, (0xD9, 1), (0xDA, 2), (0xDB, 4)),
        "list": (0x90, 16, (0xDC, 2), (0xDD, 4)),
        "int": (0x00, 128, (0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)),
        "bytes": (0, 0, (0xC4, 1), (0xC5, 2), (0xC6, 4)),
        "ext": (0, 0, (0xC7, 1), (0xC8, 2), (0xC9, 4)),
    }[kind]
    if size < limit:
        return bytes([fixed + size])
    if kind == "ext" and size in (1, 2, 4, 8, 16):
        return bytes([0xD4 + size.bit_length() - 1])
    marker, width = next((marker, width) for marker, width in longer if size < 256**width)
    return bytes([marker]) + size.to_bytes(width, "big")


def text(value):
    return packed("text", len(value.encode())) + value.encode()


def extension(payload, kind=1):
    return packed("ext", len(payload)) + bytes([kind]) + payload


def msgpack_array(shape, dtype, data, after=b""):
    shape = packed("list", len(shape)) + b"".join(packed("int", n) for n in shape)
    return extension(packed("list", 3) + shape + text(dtype) + packed("bytes", len(data)) + data + after)


def msgpack(value):
    if isinstance(value, dict):
        return packed("map", len(value)) + b"".join(text(key) + msgpack(x) for key, x in value.items())
    return value if isinstance(value, bytes) else msgpack_array(value.shape, value.dtype.name, value.tobytes())


def zipped(files, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"}
DICTIONARY = b"ccollections\nOrderedDict\n)R"


def pickled(value):
    """A number, text or a tuple as PyTorch pickles them."""
    match value:
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(pickled, value)) + b"t"
        case bytes():
            return value


def tensor(
    key, array, *, shape=None, strides=None, size=None, offset=0, storage=None, call="_rebuild_tensor_v2", more=()
):
    storage = storage or f"{STORAGES[array.dtype.name]}Storage"
    numbers = ("storage", f"ctorch\n{storage}\n".encode(), key, "cpu", array.size if size is None else size)
    shape = array.shape if shape is None else shape
    strides = tuple(n // array.itemsize for n in array.strides) if strides is None else strides
    arguments = (pickled(numbers) + b"Q", offset, shape, strides, b"\x89", DICTIONARY, *more)
    return f"ctorch._utils\n{call}\n".encode() + pickled(arguments) + b"R"


def torch(tensors, data, *, after=b"", top=DICTIONARY, folder="archive", version=b"3\n", byteorder=b"little", **others):
    index = b"\x80\x02" + top + b"(" + b"".join(pickled(name) + content for name, content in tensors) + b"u"
    files = {"data.pkl": index + after + b".", "byteorder": byteorder}
    files |= {f"data/{key}": content for key, content in data.items()}
    files |= {"version": version, ".data/serialization_id": b"1234", **others}
    return {f"{folder}/{name}": content for name, content in files.items()}


def torch_file(arrays, **options):
    tensors = [(name, tensor(str(i), array)) for i, (name, array) in enumerate(arrays.items())]
    return zipped(torch(tensors, {str(i): array.tobytes() for i, array in enumerate(arrays.values())}, **options))


def npz(arrays, save=np.savez):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def npy(header, data=b"", version=b"\1\0"):
    return zipped({"a.npy": b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data})


def tensors_of(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def made_by_hand(tree):
    """A file of each format, and the arrays in it."""
    arrays = flat(tree)
    without = {name: array for name, array in arrays.items() if array.dtype != jnp.bfloat16}
    return {
        "msgpack": (msgpack(tree), arrays),
        "torch": (torch_file(arrays), arrays),
        "npz": (npz(without), without),
        "safetensors": (safetensors.numpy.save(arrays), arrays),
    }


FILES = made_by_hand(TREE)
SMALL = made_by_hand({"first": {"w": normal(2, 3)}, "b": normal(4)})


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("kind", FILES)
def test_every_format_is_read_whatever_the_file_is_called(tmp_path, kind):
    data, expected = FILES[kind]
    (tmp_path / "weights").write_bytes(data)
    found = read_arrays(tmp_path / "weights")
    assert_same(found, expected)
    assert list(found) == (sorted(expected) if kind == "safetensors" else list(expected))
    assert all(array.flags.writeable and array.dtype.isnative for array in found.values())


def test_the_metadata_of_a_state_dict_are_ignored(tmp_path):
    modules = b"}" + pickled("_metadata") + DICTIONARY + b"(" + pickled("") + b"}" + pickled("version") + b"K\1sus"
    (tmp_path / "a.pt").write_bytes(torch_file({"w": normal(2)}, after=modules + b"b"))
    assert_same(read_arrays(tmp_path / "a.pt"), {"w": normal(2)})


def test_arrays_in_fortran_order_and_long_names_and_shapes_are_read(tmp_path):
    arrays = {"f": np.asfortranarray(normal(2, 3, 4)), "n" * 200: normal(*[1] * 20), "m" * 400: normal(70_000)}
    for data in (
        npz(arrays),
        msgpack(arrays),
        safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()}),
    ):
        (tmp_path / "a").write_bytes(data)
        assert_same(read_arrays(tmp_path / "a"), arrays)


# Published files.


def needs(*names):
    missing = [name for name in names if not published(name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"set LO_COMPONENTS_WEIGHTS to a folder that holds {missing}")


PUBLISHED = [
    "celo.theta.state",
    "celo_adam.theta.state",
    "sinv6.theta.state",
    "sinv6_75.theta.state",
    "celo2_weights.pt",
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(name, f"{name.split('.')[0]}.npz")) for name in PUBLISHED]
)
def test_published_files_hold_the_arrays_that_their_own_libraries_read(name):
    found, other = read_arrays(published(name)), published(f"{name.split('.')[0]}.npz")
    with np.load(other) as expected:
        assert list(found) == list(expected)
        assert_same(found, expected)
    assert_same(read_arrays(other), found)


@needs("celo2_weights.pt", "celo2.npz")
def test_published_weights_of_celo2_become_those_of_the_original():
    arrays = read_arrays(published("celo2_weights.pt"))
    theta = interop.from_pylo("celo2", arrays)
    assert_same(theta, read_arrays(published("celo2.npz")))
    assert list(interop.to_pylo("celo2", theta)) == list(arrays)
    assert_same(interop.to_pylo("celo2", theta), arrays)


# Refusals.

VALUE = np.float32([1.0, 2.0])
BYTES = VALUE.tobytes()
BAD_MSGPACK = {
    "nil": (msgpack({"a": b"\xc0"}), "the msgpack marker 0xc0 in place of an array"),
    "a boolean": (msgpack({"__msgpack_chunked_array__": b"\xc3"}), "the msgpack marker 0xc3 in place of an array"),
    "a number": (msgpack({"a": b"\1"}), "the msgpack marker 0x01 in place of an array"),
    "a list": (msgpack({"a": b"\x90"}), "the msgpack marker 0x90 in place of an array"),
    "text": (msgpack({"a": text("b")}), "the msgpack marker 0xa1 in place of an array"),
    "a number as a key": (b"\x81\1\x80", "the msgpack marker 0x01 in place of a name"),
    "a complex number": (msgpack({"a": extension(b"\0" * 16, 2)}), "`a` as the msgpack extension 2"),
    "a scalar": (msgpack({"a": extension(b"\0" * 16, 3)}), "`a` as the msgpack extension 3"),
    "a time": (msgpack({"a": extension(b"\0" * 4, 255)}), "`a` as the msgpack extension 255"),
    "two parts": (msgpack({"a": extension(b"\x92\x90" + text("float32"))}), "`a` without a shape, a dtype and numbers"),
    "a complex dtype": (msgpack({"a": msgpack_array((1,), "complex64", b"\0" * 8)}), "`a` in the dtype 'complex64'"),
    "big-endian": (msgpack({"a": msgpack_array((2,), ">f4", BYTES)}), "`a` in the dtype '>f4'"),
    "objects": (msgpack({"a": msgpack_array((1,), "object", b"\0" * 8)}), "`a` in the dtype 'object'"),
    "another shape": (msgpack({"a": msgpack_array((3,), "float32", BYTES)}), r"`a` with 8 bytes, .* float32\[3\]"),
    "a huge shape": (msgpack({"a": msgpack_array((2**63,) * 20, "float32", BYTES)}), "`a` with 8 bytes"),
    "many axes": (msgpack({"a": msgpack_array((1,) * 33, "float32", BYTES[:4])}), "`a` with a shape that no array"),
    "a negative size": (
        msgpack({"a": extension(b"\x93\x91\xff" + text("float32") + packed("bytes", 0))}),
        "the msgpack marker 0xff in place of the size of an axis",
    ),
    "bytes after numbers": (msgpack({"a": msgpack_array((2,), "float32", BYTES, b"\0")}), "1 bytes after the end"),
    "bytes after the map": (msgpack({"a": VALUE}) + b"\x80", "1 bytes after the end of a value"),
    "a long array": (b"\x81\xa1a\xc9\xff\xff\xff\xff\1", "ends before a value does"),
    "a long map": (b"\xdf\xff\xff\xff\xff" + msgpack({"a": VALUE})[1:], "ends before a value does"),
    "a long name": (b"\x81\xdb\xff\xff\xff\xffa", "ends before a value does"),
    "deep maps": (b"\x81\xa1a" * 16 + msgpack({"a": VALUE}), "more than 16 maps inside each other"),
    "a million maps": (b"\x81\xa1a" * 10**6 + b"\x80", "more than 16 maps inside each other"),
    "a name twice": (b"\x82" + 2 * msgpack({"a": VALUE})[1:], "two arrays called `a`"),
    "a joined name twice": (msgpack({"a": {"b": VALUE}, "a/b": VALUE}), "two arrays called `a/b`"),
    "a name that is not text": (b"\x81\xa1\xff" + msgpack(VALUE), "a name that is not text"),
    "a name that moves the cursor": (msgpack({"\x1b[2J": VALUE}), r"characters that cannot be printed, '\\x1b\[2J'"),
    "a very long name": (msgpack({"b" * 501: VALUE}), "a name of more than 500 characters"),
    "no arrays": (msgpack({"a": {}}), "it has no arrays"),
}


def torch_of(*tensors, data=None, **options):
    return zipped(torch(list(tensors), {"0": BYTES} if data is None else data, **options))


GOOD = ("a", tensor("0", VALUE))
MATRIX = normal(2, 3)
BAD_TORCH = {
    "a function": (torch_of(("a", b"cos\nsystem\n" + pickled(("echo",)) + b"R")), "it asks for `os.system`"),
    "a parameter": (torch_of(("a", tensor("0", VALUE, call="_rebuild_parameter"))), "torch._utils._rebuild_parameter"),
    "complex numbers": (
        torch_of(("a", tensor("0", VALUE, storage="ComplexFloatStorage"))),
        "torch.ComplexFloatStorage",
    ),
    "an offset": (torch_of(("a", tensor("0", VALUE, shape=(1,), offset=1))), "begins in the middle of its numbers"),
    "a view": (torch_of(("a", tensor("0", VALUE, shape=(1,)))), r"`a` with 8 bytes, .* float32\[1\]"),
    "a transposed matrix": (
        torch_of(("a", tensor("0", MATRIX, strides=(1, 2))), data={"0": MATRIX.tobytes()}),
        "`a` in another order than row by row",
    ),
    "numbers for two": (torch_of(GOOD, ("b", tensor("0", VALUE))), "no numbers for `b`, or two tensors share them"),
    "no numbers": (torch_of(GOOD, data={}), "no numbers for `a`"),
    "numbers for none": (torch_of(GOOD, data={"0": BYTES, "1": BYTES}), "numbers `data/1`, which belong to no tensor"),
    "fewer numbers": (torch_of(("a", tensor("0", VALUE, size=1))), "`a` with 1 numbers, but a shape of 2"),
    "too few bytes": (torch_of(GOOD, data={"0": BYTES[:4]}), "`a` with 4 bytes"),
    "a negative size": (torch_of(("a", tensor("0", VALUE, shape=(-2,)))), "`a` with a shape that no array has"),
    "a negative pair": (torch_of(("a", tensor("0", VALUE, shape=(-2, -1), strides=(1, 1)))), "a shape that no array"),
    "a shape of tuples": (torch_of(("a", tensor("0", VALUE, shape=((2,),)))), "a shape that no array has"),
    "fewer strides": (torch_of(("a", tensor("0", VALUE, strides=()))), "calls a function that dictionaries of tensors"),
    "numbers from elsewhere": (
        torch_of(("a", b"ctorch._utils\n_rebuild_tensor_v2\n" + pickled((pickled(("module", "a")) + b"Q",)) + b"R")),
        "refers to something that is not the numbers of a tensor",
    ),
    "big-endian": (torch_of(GOOD, byteorder=b"big"), "its numbers are big-endian"),
    "another version": (torch_of(GOOD, version=b"11\n"), "its version of PyTorch's format is not known"),
    "code": (torch_of(GOOD, **{"code/a.py": b"1"}), "the member `code/a.py`, which belongs to no dictionary"),
    "a nested dictionary": (torch_of(("a", DICTIONARY)), "`a`, which is not a tensor"),
    "a number": (torch_of(("a", b"K\1")), "`a`, which is not a tensor"),
    "a list": (zipped({**torch([], {}), "archive/data.pkl": b"\x80\x02]."}), "something else than a dictionary"),
    "two values": (torch_of(GOOD, after=b"]"), "more values than one"),
    "more after the end": (torch_of(GOOD, after=b".K\1"), "something follows its end"),
    "a name twice": (torch_of(GOOD, GOOD), "a dictionary with a key twice"),
    "a tensor with metadata": (
        torch_of(("a", tensor("0", VALUE, more=(b"}",)))),
        "calls a function that dictionaries of tensors do not need",
    ),
    "a state": (torch_of(GOOD, after=b"}(" + pickled("update") + b"K\1ub"), "sets the state of something"),
    "a new object": (torch_of(("a", b"ctorch\nFloatStorage\n)\x81")), "asks for the operation NEWOBJ"),
    "an instance": (torch_of(("a", b"(ios\nsystem\n")), "asks for the operation INST"),
    "a long index": (torch_of(GOOD, after=b"]" * 2**20), "its index of tensors has more than 1048576 bytes"),
    "an empty stack": (torch_of(GOOD, top=b""), "cannot be read: "),
    "compressed": (
        zipped(torch([GOOD], {"0": BYTES}), compression=zipfile.ZIP_DEFLATED),
        "its member `archive/data.pkl` is compressed",
    ),
    "the format of 2019": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "it is a pickle, which can run any code"),
    "two folders": (
        zipped({**torch([GOOD], {"0": BYTES}), "b/data.pkl": b""}),
        "a zip archive, but neither NumPy's nor PyTorch's",
    ),
    "no arrays": (torch_of(data={}), "it has no arrays"),
}
HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"
ONE = npz({"a": VALUE})


BAD_NPZ = {
    "compressed": (npz({"a": np.zeros(9)}, np.savez_compressed), r"its member `a.npy` is compressed.*`numpy.savez`"),
    "objects": (npz({"a": np.array([None])}), "`a` as an array of Python objects"),
    "big-endian": (npz({"a": VALUE.astype(">f4")}), "`a` in the dtype '>f4'"),
    "complex": (npz({"a": VALUE.astype(complex)}), "`a` in the dtype '<c16'"),
    "booleans": (npz({"a": VALUE > 0}), r"`a` in the dtype '\|b1'"),
    "text": (npz({"a": np.array(["x"])}), "`a` in the dtype '<U1'"),
    "times": (npz({"a": np.zeros(1, "M8[s]")}), r"`a` in the dtype '<M8\[s\]'"),
    "fields": (npz({"a": np.zeros(1, [("x", "f4")])}), "or with fields in it"),
    "version 2": (npy(HEADER, BYTES, b"\2\0"), "`a` without a header of the npy format, version 1.0"),
    "no header": (zipped({"a.npy": b""}), "`a` without a header of the npy format"),
    "another shape": (npy(HEADER.replace(b"2", b"3"), BYTES), r"`a` with 8 bytes, .* float32\[3\]"),
    "a huge shape": (npy(HEADER.replace(b"2", b"9" * 400), BYTES), "`a` with 8 bytes"),
    "a longer number": (npy(HEADER.replace(b"2", b"9" * 5000), BYTES), "`a` with a shape that no array has"),
    "a negative size": (npy(HEADER.replace(b"2", b"-2"), BYTES), "`a` without a header of the npy format"),
    "a call": (npy(HEADER.replace(b"2", b"f()"), BYTES), "`a` without a header of the npy format"),
    "odd commas": (npy(HEADER.replace(b"2", b"1,,2"), BYTES), "`a` with a shape that no array has"),
    "bytes after": (ONE + b"\0", "cut short, or something follows its zip archive"),
    "a comment": (ONE[:-2] + b"\1\0!", "cut short, or something follows its zip archive"),
    "bytes before": (b"PK\3\4" + ONE, "something precedes its zip archive"),
    "cut short": (ONE[:-1], "cut short, or something follows its zip archive"),
    "another number of members": (ONE[:-12] + b"\2\0" + ONE[-10:], "another number of members than it claims"),
    "encrypted": (ONE[: ONE.index(b"PK\1\2") + 8] + b"\1" + ONE[ONE.index(b"PK\1\2") + 9 :], "encrypted or damaged"),
    "changed numbers": (ONE.replace(BYTES, BYTES[::-1]), "cannot be read: Bad CRC-32 for file 'a.npy'"),
    "another member": (zipped({"a.npy": npy(HEADER, BYTES), "b.txt": b""}), "neither NumPy's nor PyTorch's"),
    "an empty archive": (zipped({}), "does not begin like msgpack"),
}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_SAFETENSORS = {
    "a name twice": (tensors_of(b'{"a":%s,"a":%s}' % ((json.dumps(ENTRY).encode(),) * 2), BYTES), "a name twice"),
    "booleans": (safetensors.numpy.save({"a": VALUE > 0}), "`a` in the dtype bool"),
    "an unknown dtype": (tensors_of({"a": {**ENTRY, "dtype": "F31"}}, BYTES), "F31"),
    "another shape": (tensors_of({"a": {**ENTRY, "shape": [3]}}, BYTES), "cannot be read: "),
    "a huge shape": (tensors_of({"a": {**ENTRY, "shape": [2**62, 2**62]}}, BYTES), "cannot be read: "),
    "a negative size": (tensors_of({"a": {**ENTRY, "shape": [-2]}}, BYTES), "cannot be read: "),
    "bytes after": (tensors_of({"a": ENTRY}, BYTES + b"\0"), "cannot be read: "),
    "cut short": (tensors_of({"a": ENTRY}, BYTES[:-1]), "cannot be read: "),
    "an overlap": (tensors_of({"a": ENTRY, "b": ENTRY}, BYTES), "cannot be read: "),
    "a long header": (struct.pack("<Q", 2**40) + b"{}", "does not begin like msgpack"),
    "a deep header": (tensors_of(b"{" + b'"a":{' * 10**5), "cannot be read: "),
    "no arrays": (tensors_of({}), "it has no arrays"),
}
OTHERS = {
    "empty": (b"", "does not begin like msgpack, PyTorch's zip format, safetensors or npz"),
    "text": (b"hello, world", "does not begin like"),
    "gzip": (b"\x1f\x8b\x08\0", "does not begin like"),
    "an npy file": (b"\x93NUMPY\1\0", "does not begin like"),
    "an empty map": (b"\x80", "does not begin like"),
    "a pickle": (pickle.dumps({"a": 1}), "it is a pickle, which can run any code"),
}
BAD = {"msgpack": BAD_MSGPACK, "torch": BAD_TORCH, "npz": BAD_NPZ, "safetensors": BAD_SAFETENSORS, "other": OTHERS}


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, cases in BAD.items() for case in cases])
def test_what_is_not_known_is_refused_by_name(tmp_path, kind, case):
    data, reason = BAD[kind][case]
    path = tmp_path / "weights"
    path.write_bytes(data)
    begin = time.perf_counter()
    with pytest.raises(
        CheckpointError, match=f"^`{path}` cannot be read: .*{reason.removeprefix('cannot be read: ')}"
    ) as error:
        read_arrays(path)
    assert time.perf_counter() - begin < 5 and len(str(error.value)) < len(str(path)) + 400


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_and_members_that_overlap_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(HEADER)) + HEADER + BYTES)
    with pytest.raises(CheckpointError, match="two members of one name"):
        read_arrays(path)
    # Many entries of the directory, each for the same large member.
    one = zipped({"a.npy": bytes(10_000)})
    start = one.index(b"PK\1\2")
    entry = one[start:-22]
    entries = b"".join(entry.replace(b"a.npy", b"%05d" % i) for i in range(1000))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1000, 1000, len(entries), start, 0)
    path.write_bytes(one[:start] + entries + end)
    with pytest.raises(CheckpointError, match="its members overlap|Overlapped entries"):
        read_arrays(path)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_short_anywhere_is_refused(tmp_path, kind):
    data, _ = SMALL[kind]
    for length in range(len(data)):
        (tmp_path / "a").write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_arrays(tmp_path / "a")


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pt"):
        read_arrays(tmp_path / "nothing.pt")


GREEDY = {
    "maps that claim entries": b"".join(b"\xdf\xff\xff\xff\xff\xa1a" for _ in range(20_000)),
    "a name before many": b"\x81" + text("n" * 100_000) + msgpack({f"{i}": VALUE for i in range(5000)}),
    "a pickle of dictionaries": zipped(torch([], {}, after=b"}" * 20_000)),
    "a pickle of one tuple in many": zipped(torch([], {}, after=b")" + b"\x85" * 20_000)),
    "a pickle of its own copies": zipped(torch([], {}, after=b")q\0" + b"(h\0h\0h\0h\0tq\0" * 10_000)),
    "many members": zipped({f"{i}.npy": b"" for i in range(5000)}),
}


@pytest.mark.parametrize("case", GREEDY)
def test_no_file_takes_much_more_time_or_memory_than_its_size(tmp_path, case):
    path = tmp_path / "weights"
    path.write_bytes(GREEDY[case])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 120 * len(GREEDY[case])
    finally:
        tracemalloc.stop()


# Changed files.


def mangled(rng, data):
    """`data` with some of its bytes changed."""
    changed = bytearray(data)
    i, j = sorted(rng.sample(range(len(data)), 2))
    match rng.choice(["bit", "byte", "marker", "bytes", "cut", "swap", "append", "remove", "repeat"]):
        case "bit":
            changed[i] ^= 1 << rng.randrange(8)
        case "byte":
            changed[i] = rng.randrange(256)
        case "marker":
            changed[i] = rng.choice(
                b"\x00\x01\x7f\x80\x81\x8f\x90\x93\xa0\xc0\xc4\xc6\xc7\xc9\xd4\xd8\xdb\xdd\xde\xdf\xff()0Qeu"
            )
        case "bytes":
            changed[i : i + 8] = rng.choice([rng.randbytes(8), bytes(8), b"\xff" * 8])
        case "cut":
            del changed[i:]
        case "swap":
            n = min(rng.randrange(1, 64), j - i)
            changed[i : i + n], changed[j : j + n] = changed[j : j + n], changed[i : i + n]
        case "append":
            changed += rng.randbytes(rng.randrange(1, 16))
        case "remove":
            del changed[i : min(j, i + rng.choice([1, 2, 4, 100]))]
        case "repeat":
            changed[i:i] = changed[i : min(j, i + rng.choice([1, 2, 4, 100]))]
    return bytes(changed)


def resealed(rng, data):
    """A zip archive with a changed member, whose checksum is right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    index = [name for name in files if name.endswith("data.pkl")]
    name = index[0] if index and rng.random() < 0.8 else rng.choice([name for name in files if len(files[name]) > 1])
    header = 10**6 if index else 128  # an npy file's header, rather than its numbers
    files[name] = mangled(rng, files[name][:header]) + files[name][header:]
    return zipped(files)


def described(arrays):
    return [(name, array.dtype, array.shape) for name, array in arrays.items()]


def fuzz(folder, kind, count, seed):
    """Read `count` changed files of a format, and count what became of them.

    A file that is read is the same as before; or it differs in names, shapes or dtypes, as `from_reference` notices; or
    it differs in numbers only, which are those at their places in the changed file. For zip archives, whose checksums
    are right in half of the changed files, the other half must be the same as before.
    """
    names = {"msgpack": PUBLISHED[:2], "torch": PUBLISHED[-1:], "npz": ["celo2.npz"], "safetensors": []}[kind]
    files = [FILES[kind][0], SMALL[kind][0]] * 2
    files += [published(name).read_bytes() for name in names if published(name).exists()]
    path, watch, rng = folder / "changed", Watch(), random.Random(seed)
    counts = {"refused": 0, "same": 0, "other names, shapes or dtypes": 0, "other numbers": 0}
    slowest, most = 0.0, 0.0
    codecs.lookup("raw-unicode-escape")  # the first pickle with text in this encoding would import it
    originals = []
    for data in files:
        path.write_bytes(data)
        originals.append((data, read_arrays(path)))
    tracemalloc.start()
    for i in range(count):
        data, original = rng.choice(originals)
        sealed = kind in ("torch", "npz") and i % 2 == 0
        changed = resealed(rng, data) if sealed else mangled(rng, data)
        path.write_bytes(changed)
        tracemalloc.reset_peak()
        before, begin, watch.on = tracemalloc.get_traced_memory()[0], time.process_time(), True
        try:
            found = read_arrays(path)
        except CheckpointError as error:
            watch.on = False
            assert str(error).startswith(f"`{path}` cannot be read: ")
            found = None
        finally:
            watch.on, slowest = False, max(slowest, time.process_time() - begin)
            most = max(most, (tracemalloc.get_traced_memory()[1] - before) / (2**16 + len(changed)))
        if found is None:
            counts["refused"] += 1
        elif described(found) != described(original):
            assert sealed or kind in ("msgpack", "safetensors"), "a change was not noticed by a checksum"
            counts["other names, shapes or dtypes"] += 1
        elif any(found[name].tobytes() != original[name].tobytes() for name in found):
            assert sealed or kind in ("msgpack", "safetensors"), "a change was not noticed by a checksum"
            if not sealed:
                assert len(changed) == len(data)
                for name, array in original.items():
                    at = data.index(array.tobytes())
                    assert found[name].tobytes() == changed[at : at + array.nbytes]
            counts["other numbers"] += 1
        else:
            counts["same"] += 1
        if found is not None:
            assert sum(array.nbytes for array in found.values()) <= len(changed)
    assert not watch.seen, watch.seen
    return {**counts, "slowest": slowest, "bytes per byte": most}


def fuzz_elsewhere(folder, kinds, count, seed):
    """`fuzz` in a fresh interpreter, without the tests' import hook, which compiles code all the time."""
    code = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_published_weights as t
print(json.dumps({{kind: t.fuzz(Path({str(folder)!r}), kind, {count}, {seed}) for kind in {kinds!r}}}))
"""
    result = run_python(code, timeout=1200)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def check(found, count):
    for kind, result in found.items():
        print(kind, result)
        assert result["refused"] > count / 4 and result["slowest"] < 2.0 and result["bytes per byte"] < 40


def test_no_changed_file_is_read_as_what_it_is_not_or_runs_anything(tmp_path):
    check(fuzz_elsewhere(tmp_path, list(FILES), 200, seed=0), 200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_none_of_ten_thousand_changed_files_is_read_as_what_it_is_not_or_runs_anything(tmp_path, kind):
    check(fuzz_elsewhere(tmp_path, [kind], 10_000, seed=1), 10_000)


# Writers.


@pytest.mark.parametrize(("suffix", "arrays"), [(".npz", FILES["npz"][1]), (".safetensors", FLAT)])
def test_what_is_written_is_read_again_here_and_by_the_formats_own_library(tmp_path, suffix, arrays):
    path, again = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_arrays(path, arrays)
    assert_same(read_arrays(path), arrays)
    write_arrays(str(again), {name: jnp.asarray(x) if x.dtype.itemsize < 8 else x for name, x in arrays.items()})
    assert path.read_bytes() == again.read_bytes()
    if suffix == ".npz":
        with np.load(path) as found:
            assert_same(found, arrays)
    else:
        assert_same(safetensors.numpy.load_file(path), arrays)


@pytest.mark.parametrize(
    ("file", "arrays", "message"),
    [
        ("a.pt", {"a": VALUE}, "`path` must end in .npz or .safetensors"),
        ("a.npz", {"a": FLAT["half/b"]}, "`a` is bfloat16, which is not written to .npz files"),
        ("a.npz", {"a": np.array([None])}, "`a` is object, which is not written to .npz files"),
        ("a.safetensors", {"a": VALUE > 0}, "`a` is bool, which is not written to .safetensors files"),
        ("a.npz", {}, "is not written, since it has no arrays"),
        ("a.npz", {"a" * 501: VALUE}, "is not written, since it has a name of more than 500 characters"),
        ("a.npz", {"a\0b": VALUE}, "is not written, since it has a name with characters that cannot be printed"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, file, arrays, message):
    with pytest.raises(ValueError, match=message):
        write_arrays(tmp_path / file, arrays)
    assert not list(tmp_path.iterdir())


# Layouts of reference implementations.


RECIPES = {
    "small_fc_lopt": lambda key: recipes.small_fc_lopt(key=key),
    "mulo": lambda key: recipes.mulo(key=key),
    "mlp_lopt": lambda key: recipes.lolv2(hidden_layers=1, key=key),
    "lagg_a": lambda key: recipes.lagg_a(8, key=key),
    "lopt_a": lambda key: recipes.lopt_a(key=key),
    "lagg": lambda key: recipes.lagg(8, key=key),
    "lopt": lambda key: recipes.lopt(hidden_size=5, key=key),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_weights_go_to_a_reference_implementation_and_back(tmp_path, kind):
    learner = jax.tree.map(lambda x: x + 0.25 if isinstance(x, jax.Array) else x, RECIPES[kind](jax.random.key(3)))
    head = learner.pipeline.head
    config = {"hidden_size": head.weights[0].shape[1], "hidden_layers": len(head.weights) - 1}
    write_arrays(tmp_path / "theta.npz", interop.to_reference(learner))
    again = interop.from_reference(kind, read_arrays(tmp_path / "theta.npz"), config)
    assert jax.tree.structure(again) == jax.tree.structure(learner)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(learner), strict=True):
        np.testing.assert_array_equal(a, b)


SMALL_LSTM = {"lstm_hidden_size": 5}
CONTROLLED = {
    "velo": (
        lambda key: recipes.velo(lstm_size=5, num_networks=3, scale=1.0, recurrent=False, key=key),
        {**SMALL_LSTM, "param_inits": 3, "ff_mult": 1.0, "use_bugged_next_lstm_state": True},
    ),
    "celo": (
        lambda key: recipes.celo(lstm_size=5, hidden_size=6, hidden_layers=1, step_mult=0.5, key=key),
        {**SMALL_LSTM, "ff_hidden_size": 6, "ff_hidden_layers": 1, "step_mult": 0.5},
    ),
    "phase 1 of celo": (lambda key: ClippedByValue(recipes.celo_update(key=key)), {"train_phase": 1}),
    "celo_adam": (lambda key: recipes.celo_adam(lstm_size=5, step_mult=0.5, key=key), {**SMALL_LSTM, "step_mult": 0.5}),
    "sinv6": (lambda key: recipes.sinv6(lstm_size=5, key=key), SMALL_LSTM),
    "celo2": (
        lambda key: recipes.celo2_base(0.01, weight_decay=0.5, hidden_size=3, key=key),
        {"ff_hidden_size": 3, "lr": 0.01, "weight_decay": 0.5, "orthogonalize": False},
    ),
}


@pytest.mark.parametrize("name", CONTROLLED)
def test_weights_of_controlled_and_scheduled_optimizers_go_to_the_originals_and_back(name):
    recipe, config = CONTROLLED[name]
    learner = jax.tree.map(lambda x: x + 0.25 if isinstance(x, jax.Array) else x, recipe(jax.random.key(3)))
    again = interop.from_reference(name.split()[-1], interop.to_reference(learner), config)
    assert jax.tree.structure(again) == jax.tree.structure(learner)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(learner), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["velo_small", "celo_small", "celo_phase1", "celo_adam_small", "celo2_base_small"])
def test_names_and_shapes_are_those_of_the_originals(name):
    """Values too, except of arrays and outputs without effect, which are zeros."""
    run = load_golden(name)
    legacy = {"lstm_init_state/0": "lstm_init_state/hidden", "lstm_init_state/1": "lstm_init_state/cell"}
    theta = {legacy.get(key, key): array for key, array in run["theta"].items()}
    config = run["config"] | ({"lstm_hidden_size": 16} if name == "celo_phase1" else {})
    found = interop.to_reference(interop.from_reference(config["kind"], run["theta"], config))
    assert set(found) == set(theta)
    for key, array in found.items():
        unused = array == 0.0
        if name != "celo_phase1" or key.startswith("ff_mod_stack"):
            assert array.shape == theta[key].shape
            np.testing.assert_array_equal(np.where(unused, 0.0, theta[key]), array)
            assert not unused.any() or re.search(r"rnn_params/(linear|rnn_to_controls)/|ff_mod_stack/~/[wb]2$", key)


def test_celo2_with_adam_for_vectors_has_the_arrays_of_its_direction():
    learner = recipes.celo2(0.01, weight_decay=0.1, key=jax.random.key(3))
    theta = interop.to_reference(learner)
    assert_same(interop.to_reference(recipes.celo2_direction(key=jax.random.key(3))), theta)
    again = interop.from_reference("celo2", theta, {"adam_leaves": ("b",)})
    assert_same(interop.to_reference(again), theta)


@pytest.mark.parametrize("name", ["small_fc_lopt_h4_l2", "mulo_h32_l2", "mlp_lopt", "lagg_a", "lopt_a", "lagg", "lopt"])
def test_recorded_weights_of_the_originals_come_back_as_they_were(name):
    run = load_golden(name)
    learner = interop.from_reference(run["config"]["kind"], run["theta"], run["config"])
    assert_same(interop.to_reference(learner), run["theta"])


def test_only_learners_of_reference_implementations_have_their_names():
    key = jax.random.key(0)
    optimizer = recipes.mulo(key=key)
    assert_same(interop.to_reference(Scaled(optimizer, {"w": 0.5})), interop.to_reference(optimizer))
    for other in (
        recipes.pooled_lagg_a(key=key),
        recipes.lopt(step_mult=jnp.ones(()), key=key),
        Scaled(Scaled(optimizer, 1.0), 1.0),
        recipes.celo(key=key).optimizer,
        ClippedByValue(recipes.celo_adam(key=key)),
        ClippedByValue(recipes.celo_adam(key=key).optimizer, 10.0),
        recipes.velo(lstm_size=4, num_networks=2, buffer=LossBuffer(20), key=key),
    ):
        with pytest.raises(ValueError, match="`learner` must have the parts of one of the recipes velo, celo, celo_"):
            interop.to_reference(other)


GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
CELO2 = {f"ff_mod_stack/~/w0__{i}": normal(n, 8, seed=i) for i, n in enumerate(GROUPS)}
CELO2 |= {f"ff_mod_stack/~/{name}": normal(*shape) for name, shape in (("b0", (8,)), ("w1", (8, 8)), ("b1", (8,)))}
CELO2 |= {"ff_mod_stack/~/w2": normal(8, 3), "ff_mod_stack/~/b2": normal(3)}


def test_weights_of_celo2_go_to_pylo_and_back():
    arrays = interop.to_pylo("celo2", CELO2)
    np.testing.assert_array_equal(arrays["hidden.weight"], CELO2["ff_mod_stack/~/w1"].T)
    assert_same(interop.from_pylo("celo2", arrays), CELO2)
    joined = {name: array for name, array in arrays.items() if not name.startswith("first_layer")}
    joined["first_layer.weight"] = np.concatenate([CELO2[f"ff_mod_stack/~/w0__{i}"] for i in range(14)]).T
    joined["first_layer.bias"] = CELO2["ff_mod_stack/~/b0"]
    assert joined["first_layer.weight"].shape == (8, 30)
    assert_same(interop.from_pylo("celo2", joined), CELO2)
    for change, message in (
        ({"first_layer.weight": normal(8, 29)}, r"`first_layer.weight` must have 30 columns, got shape \(8, 29\)"),
        ({"hidden.bias": normal(8, 1)}, r"`hidden.bias` must have 1 axes, got shape \(8, 1\)"),
        ({"more": VALUE}, "unexpected array `more`"),
    ):
        with pytest.raises(ValueError, match=message):
            interop.from_pylo("celo2", {**joined, **change})
    for missing in ("first_layer.bias", "output.bias"):
        with pytest.raises(ValueError, match=f"no array `{missing.replace('layer.', 'layer_')}`"):
            interop.from_pylo("celo2", {name: array for name, array in joined.items() if name != missing})
    for convert in (interop.from_pylo, interop.to_pylo):
        with pytest.raises(ValueError, match="`kind` must be one of celo2, got 'mulo'"):
            convert("mulo", CELO2)


# The hub.


def test_a_file_is_downloaded_by_its_explicit_name(tmp_path, monkeypatch):
    def hf_hub_download(*, repo_id, filename, revision):
        (tmp_path / filename).write_bytes(f"{repo_id} {revision}".encode())
        return str(tmp_path / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    assert weights.download("owner/name", "a.pt", revision="1234").read_bytes() == b"owner/name 1234"


def test_a_missing_package_for_downloads_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install lo-components\[hub\]"):
        weights.download("owner/name", "a.pt", revision="1234")
