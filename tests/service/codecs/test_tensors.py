import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.codecs.tensors import NUMBERS, read_tensors
from service.errors import InvalidRequestError


def tensor(**changes):
    return {"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [1, 2, 3, 4]} | changes


def refusal(inputs, raw=b""):
    with pytest.raises(InvalidRequestError) as caught:
        read_tensors(inputs, raw)
    return caught.value.sentence


def binary(size, **changes):
    given = tensor(parameters={"binary_data_size": size}, **changes)
    del given["data"]
    return given


@pytest.mark.parametrize("data", [[1, 2.5, 3, 4], [[1, 2.5, 3, 4]], [[[1], [2.5]], [[3], [4]]]], ids=["flat", "nested", "deep"])
def test_data_is_flat_or_nested_as_the_shape(data):
    shape = [2, 2, 1] if isinstance(data[0], list) and isinstance(data[0][0], list) else [1, 4]
    assert read_tensors([tensor(shape=shape, data=data)], b"")["x"].values.tolist() == [1, 2.5, 3, 4]


@given(hnp.arrays(st.sampled_from(list(NUMBERS.values())), hnp.array_shapes(max_dims=3, min_side=0, max_side=4)))
def test_json_and_raw_bytes_of_one_array_are_the_same_tensor(array):
    name = next(name for name, dtype in NUMBERS.items() if dtype == array.dtype)
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, nan=0, posinf=1, neginf=-1)
    shape = list(array.shape)
    as_json = orjson.loads(orjson.dumps(tensor(shape=shape, datatype=name, data=array.tolist())))
    from_json = read_tensors([as_json], b"")["x"]
    from_bytes = read_tensors([binary(array.nbytes, shape=shape, datatype=name)], array.tobytes())["x"]
    assert from_json.shape == from_bytes.shape == array.shape
    assert from_json.values.tolist() == from_bytes.values.tolist() == array.astype(np.float64).ravel().tolist()


@given(st.lists(st.text(max_size=5), max_size=5))
def test_texts_as_json_and_as_bytes(texts):
    raw = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts)
    given = {"datatype": "BYTES", "shape": [len(texts)]}
    assert read_tensors([tensor(**given, data=texts)], b"")["x"].values == texts
    assert read_tensors([binary(len(raw), **given)], raw)["x"].values == texts


def test_fp32_as_json_has_the_precision_of_fp32():
    assert read_tensors([tensor(datatype="FP32", shape=[1], data=[0.1])], b"")["x"].values == [np.float32(0.1)]


@pytest.mark.parametrize(("datatype", "bits"), [("FP16", "017e"), ("FP32", "0100a07f"), ("FP64", "010000000000f07f")])
def test_a_nan_that_signals_is_a_missing_value(datatype, bits):
    raw = bytes.fromhex(bits)
    assert np.isnan(read_tensors([binary(len(raw), shape=[1], datatype=datatype)], raw)["x"].values).all()


def test_null_is_a_missing_value():
    values = read_tensors([tensor(data=[1, None, 3, 4])], b"")["x"].values
    assert np.isnan(values).tolist() == [False, True, False, False]
    assert read_tensors([tensor(datatype="BYTES", shape=[2], data=["a", None])], b"")["x"].values == ["a", None]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"datatype": "BF16"}, "the datatype of input 'x' is 'BF16'; give one of BOOL, UINT8"),
        ({"datatype": "fp64"}, "INT64, FP16, FP32, FP64, BYTES, in capital letters"),
        ({"datatype": 64}, "the datatype of input 'x' is 64; give one of "),
        ({"shape": [-1, 4]}, "the shape of input 'x' is [-1, 4]; a request says how many, it cannot leave it open"),
        ({"shape": [1, 4.0]}, "the shape of input 'x' is [1, 4.0]; give an array of whole numbers"),
        ({"shape": [True, 4]}, "the shape of input 'x' is [a boolean, 4]; give an array of whole numbers"),
        ({"shape": []}, "the shape of input 'x' is []; give an array of whole numbers"),
        ({"shape": 4}, "the shape of input 'x' is 4; give an array of whole numbers"),
        ({"shape": [1] * 9}, "the shape of input 'x' has 9 dimensions"),
        ({"shape": [10**18, 10**18]}, "has 4 values; its shape [1000000000000000000, 1000000000000000000] holds"),
        ({"data": [1, 2, 3]}, "the data of input 'x' has 3 values; its shape [1, 4] holds 4"),
        ({"data": [[1, 2, 3]]}, "the data of input 'x' has an array of 3 where its shape [1, 4] says 4"),
        ({"data": [[1, 2, 3, 4], [1, 2, 3, 4]]}, "the data of input 'x' has an array of 2 where its shape [1, 4] says 1"),
        ({"data": [[1], 2, 3, 4]}, "the data of input 'x' has an array of 4 where its shape [1, 4] says 1"),
        ({"data": [[1, 2, 3, [4]]]}, "value 3 of input 'x' is an array; FP64 is a number"),
        ({"data": [1, "2", 3, 4]}, "value 1 of input 'x' is a text; FP64 is a number"),
        ({"data": [1, 2, True, 4]}, "value 2 of input 'x' is a boolean; FP64 is a number"),
        ({"data": "1234"}, "the data of input 'x' is a text; give an array"),
        ({"data": [1, 2, 3, 1e39], "datatype": "FP32"}, "value 3 of input 'x' is 1e+39, which is beyond the largest number of"),
        ({"data": [1, 2, 3, 70000], "datatype": "FP16"}, "value 3 of input 'x' is 70000, which is beyond the largest"),
        ({"data": [1, 2.5, 3, 4], "datatype": "INT32"}, "value 1 of input 'x' is 2.5, which is no INT32"),
        ({"data": [1, 2, 300, 4], "datatype": "INT8"}, "value 2 of input 'x' is 300, which is no INT8"),
        ({"data": [1, 2, -1, 4], "datatype": "UINT64"}, "value 2 of input 'x' is -1, which is no UINT64"),
        ({"data": [True, False, 2, True], "datatype": "BOOL"}, "value 2 of input 'x' is 2, which is no BOOL"),
        ({"data": ["a", 1, "c", "d"], "datatype": "BYTES"}, "value 1 of input 'x' is a number; BYTES is a text"),
        ({"parameters": []}, "the parameters of input 'x' are an array; give an object"),
        ({"parameters": {"binary_data_size": 32}}, "input 'x' has both 'data' and 'binary_data_size'"),
        ({"parameters": {"shared_memory_region": "r"}}, "input 'x' lies in shared memory"),
        ({"name": None}, "the name of input 0 is null; give a text"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_tensor_is_said(changes, sentence):
    assert sentence in refusal([tensor(**changes)])


@pytest.mark.parametrize("data", [[1, 2, [3, 4], [5, 6]], iter([[1, 2], [[3, 4], [5, 6]]])], ids=["whole", "in parts"])
def test_data_is_not_flat_here_and_nested_there(data):
    assert refusal([tensor(shape=[3, 2], data=data)]).startswith("the data of input 'x' has ")


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([], "'inputs' is empty; give an array of tensors"),
        (None, "'inputs' is missing; give an array of tensors"),
        ({}, "'inputs' is an object; give an array of tensors"),
        ([1], "input 0 is a number; give an object"),
        ([tensor(), tensor()], "input 'x' is there twice"),
        ([{"name": "x", "shape": [1], "datatype": "FP64"}], "input 'x' has no data"),
    ],
)
def test_what_is_wrong_with_the_inputs_is_said(inputs, sentence):
    assert sentence in refusal(inputs)


@pytest.mark.parametrize(
    ("given", "raw", "sentence"),
    [
        (binary(32), bytes(24), "input 'x' announces 32 bytes, but only 24 are left of the body"),
        (binary(24), bytes(24), "input 'x' has 24 bytes; its shape [1, 4] of FP64 takes 32"),
        (binary(32), bytes(40), "the body has 8 bytes more than the binary_data_size of its tensors say"),
        (binary(-1), b"", "the binary_data_size of input 'x' is -1; give a whole number"),
        (
            binary(8, datatype="BYTES", shape=[1]),
            b"\x05\0\0\0abcd",
            "value 0 of input 'x' reaches beyond the bytes",
        ),
        (binary(5, datatype="BYTES", shape=[2]), b"\x01\0\0\0a", "input 'x' has 1 values; its shape holds 2"),
        (binary(10, datatype="BYTES", shape=[1]), b"\x01\0\0\0a" * 2, "input 'x' has more than 1 values; its shape holds 1"),
        (binary(5, datatype="BYTES", shape=[1]), b"\x01\0\0\0\xff", "value 0 of input 'x' is not UTF-8"),
    ],
)
def test_what_is_wrong_with_raw_bytes_is_said(given, raw, sentence):
    assert sentence in refusal([given], raw)
