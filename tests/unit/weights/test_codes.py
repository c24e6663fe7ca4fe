"""Codes in numpy are those of torch: every 16-bit and 8-bit code, ties, and drawn FP32 values.

The hazard. One wrong rounding would call every healthy export different.
"""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from precision_lib.weights import manifest
from precision_lib.weights.codes import Codes, cast, code_type, decode, truncate_to_bf16
from precision_lib.weights.files import Source
from precision_lib.weights.manifests import describe, open_source
from precision_lib.weights.tensors import PIECE, DataTensor
from tests.unit.weights.checkpoints import save

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "fp8_e8m0": torch.float8_e8m0fnu,
}


def all_codes(fmt: str) -> tuple[np.ndarray, torch.Tensor]:
    """Every code of a format, for numpy and as torch's floats."""
    bits = torch.iinfo(torch.uint8).bits * code_type(fmt).itemsize
    integers = torch.arange(2**bits, dtype=torch.int32)
    narrow = integers.to(torch.uint8) if bits == 8 else integers.to(torch.int16)
    return narrow.numpy().view(code_type(fmt)), narrow.view(DTYPES[fmt])


@pytest.mark.parametrize("fmt", DTYPES)
def test_every_code_decodes_as_torch_does(fmt: str) -> None:
    codes, floats = all_codes(fmt)
    np.testing.assert_array_equal(decode(codes, fmt), floats.float().numpy())


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp8_e4m3"])
def test_values_at_and_between_codes_are_rounded_as_torch_does(fmt: str) -> None:
    """Every code, every midpoint of two, its neighbours in FP32, and drawn values."""
    exact = np.unique(decode(all_codes(fmt)[0], fmt))
    exact = exact[np.isfinite(exact)].astype(np.float64)
    middle = ((exact[1:] + exact[:-1]) / 2).astype(np.float32)
    drawn = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).numpy()
    values = np.concatenate(
        [exact.astype(np.float32), middle, np.nextafter(middle, np.float32(9e30)), drawn]
    )
    values = np.append(values, np.array([-0.0, np.nan], np.float32))
    if fmt == "fp8_e4m3":
        values = values[~(np.abs(values) > 448)]
    wanted = torch.from_numpy(values).to(DTYPES[fmt])
    got = cast(values, fmt)
    np.testing.assert_array_equal(decode(got, fmt), wanted.float().numpy())
    assert len(values) > 100_000


def test_a_finite_value_beyond_e4m3_becomes_its_largest() -> None:
    values = np.array([449, -1e30, 1e30], np.float32)
    assert decode(cast(values, "fp8_e4m3"), "fp8_e4m3").tolist() == [448, -448, 448]


def test_truncation_is_no_rounding() -> None:
    values = np.array([1 + 3 * 2**-9, 1.0], np.float32)
    assert decode(truncate_to_bf16(values), "bf16").tolist() == [1.0, 1.0]
    assert decode(cast(values, "bf16"), "bf16").tolist() == [1 + 2**-7, 1.0]
    with pytest.raises(ValueError, match="no cast to int8"):
        cast(values, "int8")


GOLDEN = {
    "sha256": "62397ce5299eaeeef452e83c8cffbba18ec73824ca1ab6bc4643094bd1dcc754",
    "bf16": "178618540bfb4888223d630dbff26ffe147f40bfbcff0dfa2b7d332b58ff4178",
    "fp16": "2c18db7c3f0ed5dde8bbe184428216ba055b3448f9db8cc93a60ccd653b5d1ec",
    "transposed": "c635e10535a675f239d8dd94c3097aa01dfddde5bb200b9085a0795514d02117",
}


def ramp() -> torch.Tensor:
    """[3, 4]: k / 7 for k = -6 to 5 in FP32."""
    return (torch.arange(-6, 6, dtype=torch.float32) / 7).view(3, 4)


def test_hashes_are_golden_and_can_be_made_by_anybody(tmp_path: Path) -> None:
    facts = manifest({"w": ramp()})["tensors"]["w"]
    stored = describe(open_source(save(tmp_path / "m", {"w": ramp()})))["tensors"]["w"]
    assert facts == stored
    values = ramp().numpy()
    assert facts["sha256"] == hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    assert facts["casts"]["fp16"] == hashlib.sha256(values.astype("<f2").tobytes()).hexdigest()
    got = {
        "sha256": facts["sha256"],
        "bf16": facts["casts"]["bf16"],
        "fp16": facts["casts"]["fp16"],
        "transposed": facts["transposed"]["fp32"],
    }
    assert got == GOLDEN
    assert facts["norm"] == float(f"{ramp().norm():.4g}")
    assert (facts["zeros"], facts["nonfinite"]) == (1, 0)


@pytest.mark.parametrize("layout", ["transposed", "slice", "expanded"])
def test_memory_layout_does_not_change_a_hash(layout: str) -> None:
    made = {
        "transposed": ramp().T.contiguous().T,
        "slice": torch.cat([ramp(), ramp()], 1)[:, :4],
        "expanded": ramp()[:1].expand(3, 4),
    }[layout]
    first = manifest({"w": made})["tensors"]["w"]
    assert first == manifest({"w": made.contiguous()})["tensors"]["w"]


def test_a_tensor_of_several_pieces_has_the_hash_of_the_whole() -> None:
    values = torch.arange(PIECE + 5, dtype=torch.float32)
    values[-1] = torch.inf
    facts = manifest({"w": values})["tensors"]["w"]
    assert facts["sha256"] == hashlib.sha256(values.numpy().tobytes()).hexdigest()
    assert facts["nonfinite"] == 1
    assert facts["casts"]["bf16"] == manifest({"w": values.bfloat16()})["tensors"]["w"]["sha256"]


def test_a_dtype_without_a_name_is_refused() -> None:
    with pytest.raises(TypeError, match=r"w has dtype torch\.complex64"):
        manifest({"w": torch.zeros(1, dtype=torch.complex64)})


def peak_of_a_manifest(tensors: int) -> int:
    """Peak of allocated bytes while shards that are made on the fly are described."""

    def fetch(start: int, stop: int) -> Codes:
        assert stop - start <= PIECE
        return np.arange(start, stop, dtype=np.float32)

    made = {str(i): DataTensor(str(i), "fp32", (PIECE + 7,), fetch) for i in range(tensors)}
    tracemalloc.start()
    try:
        describe(Source("simulated", made))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_tensors() -> None:
    """Each tensor adds its facts, a few kilobytes; the codes are 4 MiB."""
    few, many = peak_of_a_manifest(1), peak_of_a_manifest(8)
    assert few > 4 * PIECE
    assert many - few < 7 * 16_000
