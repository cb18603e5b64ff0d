"""Products of a few spikes: the weights of what fired are added up, the rest is left out.

With the entries of row ``r`` that are not zero, at columns ``j`` with values ``x[r, j]``::

    current[r] = sum_j x[r, j] W[:, j]                     gather and add
    g_W[:, j]  = sum_r x[r, j] delta[r]                    the same on the transposed index

Both cost as many rows of additions as there are events. The gradient of the rows themselves stays
a dense product: a surrogate has no zeros.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from spikecl.errors import UsageError
from spikecl.kernels import compiler
from spikecl.kernels.c_code import REALS

# What one value costs, relative to one multiplication of a dense product: of looking for events,
# of adding a weight from a transposed matrix, of writing that matrix, of adding a weight from the
# matrix as it is. Constants, so that a choice is reproducible.
SEARCH, ADD, TURN, ADD_UNTURNED = 30.0, 3.0, 10.0, 7.0
WIDTH = 128  # outputs that are turned at a time, in C: eight vectors of 64 bytes of float32
ADD_STOCK = 7.0  # adding a weight by torch.embedding_bag
SMALLEST = 1 << 22  # multiplications; below, nothing is worth a look


class Events(NamedTuple):
    """The entries of rows [R, n] that are not zero.

    Args:
        starts: Where each row begins [R + 1].
        columns: Column of each event.
        values: Its value; ``None`` where all are 1.
        shape: ``R`` and ``n``.
        dtype: Of the rows.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor | None
    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def density(self) -> float:
        """Fraction of the entries that are events."""
        return len(self.columns) / max(1, self.shape[0] * self.shape[1])

    def dense(self) -> Tensor:
        """Return the rows."""
        rows, n = self.shape
        out = torch.zeros(rows * n, dtype=self.dtype, device=self.columns.device)
        flat = self.rows() * n + self.columns.long()
        if self.values is None:
            out[flat] = 1
        else:
            out[flat] = self.values
        return out.view(rows, n)

    def rows(self) -> Tensor:
        """Return the row of each event."""
        counts = self.starts.diff()
        return torch.repeat_interleave(counts)

    def transposed(self) -> Events:
        """Return the same events as rows [n, R]."""
        rows, n = self.shape
        index = _index(max(rows, n))
        if (library := _library(self.dtype, index)) is not None:
            starts = torch.empty(n + 1, dtype=torch.int64)
            given, columns = self.columns.to(index), torch.empty(len(self.columns), dtype=index)
            values = None if self.values is None else torch.empty_like(self.values)
            library.transpose(
                rows, n, self.starts.data_ptr(), given.data_ptr(), _at(self.values),
                starts.data_ptr(), columns.data_ptr(), _at(values),
            )  # fmt: skip
            return Events(starts, columns, values, (n, rows), self.dtype)
        order = torch.argsort(self.columns, stable=True)
        counts = torch.bincount(self.columns.long(), minlength=n)
        starts = functional.pad(counts.cumsum(0), (1, 0))
        values = None if self.values is None else self.values[order]
        return Events(starts, self.rows()[order].int(), values, (n, rows), self.dtype)


class Bits(NamedTuple):
    """An array of zeros and ones, eight to the byte.

    Args:
        packed: The bytes.
        shape: Shape of the array.
        dtype: Type of the array.
    """

    packed: Tensor
    shape: torch.Size
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """Return the array."""
        size = self.shape.numel()
        library = _library(self.dtype) if self.packed.device.type == "cpu" else None
        if library is not None:
            out = torch.empty(self.shape, dtype=self.dtype)
            library.unpack(size, self.packed.data_ptr(), out.data_ptr())
            return out
        steps = torch.arange(8, device=self.packed.device, dtype=torch.uint8)
        bits = (self.packed[:, None] >> steps) & 1
        return bits.flatten()[:size].to(self.dtype).view(self.shape)


def bits_of(x: Tensor) -> Bits | None:
    """Return an array as bits; ``None`` if it holds anything but 0 and 1."""
    x = x.detach().contiguous()
    size = x.numel()
    library = _library(x.dtype) if x.device.type == "cpu" else None
    if library is not None:
        packed = torch.empty(-(-size // 8), dtype=torch.uint8)
        graded = library.pack(size, x.data_ptr(), packed.data_ptr())
        return None if graded else Bits(packed, x.shape, x.dtype)
    if not bool(((x == 0) | (x == 1)).all()):
        return None
    rows = functional.pad(x.flatten(), (0, -size % 8)).view(-1, 8)
    powers = 2 ** torch.arange(8, device=x.device, dtype=torch.int32)
    return Bits((rows.int() * powers).sum(1).to(torch.uint8), x.shape, x.dtype)


def is_worth(rows: Tensor, outputs: int) -> bool:
    """Whether events would be cheaper than a dense product for rows [R, n], by their density."""
    work = rows.numel() * outputs
    if rows.device.type != "cpu" or rows.dtype not in REALS or work < SMALLEST:
        return False
    left = work - SEARCH * rows.numel()  # what there is to gain
    turned_too = left - TURN * rows.shape[1] * outputs
    if _library(rows.dtype) is None:
        most = turned_too / ADD_STOCK
    else:
        most = max(turned_too / ADD, left / ADD_UNTURNED)
    return most > 0 and count(rows) * outputs < most


def count(rows: Tensor) -> int:
    """Return the number of entries that are not zero."""
    library = _library(rows.dtype)
    if library is None or not rows.is_contiguous():
        return int(torch.count_nonzero(rows))
    found: int = library.count(rows.data_ptr(), rows.numel())
    return found


def events_of(rows: Tensor) -> Events:
    """Return the events of rows [R, n]."""
    shape = (rows.shape[0], rows.shape[1])
    rows = rows.detach().contiguous()
    index = _index(shape[1])
    library = _library(rows.dtype, index) if rows.device.type == "cpu" else None
    if library is not None:
        total = library.count(rows.data_ptr(), rows.numel())
        starts = torch.empty(shape[0] + 1, dtype=torch.int64)
        columns = torch.empty(total, dtype=index)
        values = torch.empty(total, dtype=rows.dtype)
        graded = library.find(
            *shape, rows.data_ptr(), starts.data_ptr(), columns.data_ptr(), values.data_ptr()
        )
        return Events(starts, columns, values if graded else None, shape, rows.dtype)
    at = rows.nonzero()
    starts = functional.pad(torch.bincount(at[:, 0], minlength=shape[0]).cumsum(0), (1, 0))
    values = rows[at[:, 0], at[:, 1]]
    ones = bool((values == 1).all())
    return Events(starts, at[:, 1].int(), None if ones else values, shape, rows.dtype)


def gather(events: Events, table: Tensor) -> Tensor:
    """Return ``out[r] = sum of value times table[column]`` over the events of each row [R, m]."""
    _check(events, table, len(table))
    m = table.shape[1]
    table = table.contiguous()
    index = events.columns.dtype
    library = _library(events.dtype, index) if table.device.type == "cpu" else None
    if library is not None:
        out = torch.empty(events.shape[0], m, dtype=table.dtype)
        library.gather(
            events.shape[0], m, events.starts.data_ptr(), events.columns.data_ptr(),
            _at(events.values), table.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        return out
    return functional.embedding_bag(
        events.columns.int(),
        table,
        events.starts.int(),
        mode="sum",
        per_sample_weights=events.values,
        include_last_offset=True,
    )


def _check(events: Events, other: Tensor, columns: int) -> None:
    """Refuse what C would read past its end."""
    if other.dtype != events.dtype or columns != events.shape[1]:
        raise UsageError(
            f"rows of {events.shape[1]} inputs, {events.dtype}, meet {columns} inputs, "
            f"{other.dtype}; give weights of the same size and type"
        )


def product(events: Events, weight: Tensor) -> Tensor:
    """Return the current ``x W^T`` [R, m] of the rows ``x`` of the events and a weight [m, n]."""
    _check(events, weight, weight.shape[1])
    library = _library(events.dtype, events.columns.dtype) if weight.device.type == "cpu" else None
    if library is None:
        return gather(events, turned(weight))
    weight, (rows, n) = weight.contiguous(), events.shape
    out = torch.empty(rows, len(weight), dtype=weight.dtype)
    given = (rows, n, len(weight), events.starts.data_ptr(), events.columns.data_ptr())
    if (ADD_UNTURNED - ADD) * len(events.columns) <= TURN * n:
        library.pick(*given, _at(events.values), weight.data_ptr(), out.data_ptr())
    else:
        table = torch.empty(n * min(len(weight), WIDTH), dtype=weight.dtype)
        pointers = (weight.data_ptr(), table.data_ptr(), out.data_ptr())
        library.apply(*given, _at(events.values), *pointers)
    return out


def outer(events: Events, delta: Tensor) -> Tensor:
    """Return ``delta^T x`` [m, n] for the rows ``x`` of the events."""
    _check(events, delta, events.shape[1])
    if len(delta) != events.shape[0]:
        raise UsageError(f"{len(delta)} rows of errors for {events.shape[0]} rows of events")
    if events.shape[0] < 2 * TURN:  # the matrix itself is more than its terms
        return delta.T @ events.dense()
    return turned(gather(events.transposed(), delta))


def turned(matrix: Tensor) -> Tensor:
    """Return the transposed matrix, contiguous."""
    library = _library(matrix.dtype) if matrix.device.type == "cpu" else None
    if library is None or not matrix.is_contiguous():
        return matrix.T.contiguous()
    out = torch.empty(matrix.shape[1], matrix.shape[0], dtype=matrix.dtype)
    library.turn(*matrix.shape, matrix.data_ptr(), out.data_ptr())
    return out


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _index(columns: int) -> torch.dtype:
    """Return the smallest type that counts columns."""
    return torch.int16 if columns <= torch.iinfo(torch.int16).max else torch.int32


@functools.cache
def _library(dtype: torch.dtype, index: torch.dtype = torch.int16) -> ctypes.CDLL | None:
    if compiler.against() is not None or dtype not in REALS:
        return None
    names = {torch.int16: "int16_t", torch.int32: "int32_t"}
    source = _SOURCE.replace("REAL", REALS[dtype]).replace("INDEX", names[index])
    library = compiler.load(source)
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    for name, sizes, pointers, result in (
        ("find", 2, 4, ctypes.c_int),
        ("transpose", 2, 6, None),
        ("gather", 2, 5, None),
        ("turn", 2, 2, None),
        ("pick", 3, 5, None),
        ("apply", 3, 6, None),
        ("pack", 1, 2, ctypes.c_int),
        ("unpack", 1, 2, None),
    ):
        function = getattr(library, name)
        function.argtypes = [size] * sizes + [pointer] * pointers
        function.restype = result
    library.count.argtypes, library.count.restype = [pointer, size], size
    return library


_SOURCE = """
#include <stdint.h>
#include <string.h>
typedef REAL R;
typedef INDEX COLUMN;
#define LANES (64 / (int64_t)sizeof(R))
typedef R V __attribute__((vector_size(64), aligned(sizeof(R))));

int64_t count(const R *restrict x, int64_t size) {
  int64_t total = 0;
  for (int64_t from = 0; from < size; from += 4096) {
    const int64_t n = size - from < 4096 ? size - from : 4096;
    int32_t part = 0;
    for (int64_t i = 0; i < n; i++) part += x[from + i] != 0;
    total += part;
  }
  return total;
}

/* bit i of the result: whether x[i] is not zero; up to 64 values */
static inline uint64_t fired(const R *x, int64_t n) {
  uint8_t flags[64] = {0};
  if (n >= 64) for (int i = 0; i < 64; i++) flags[i] = x[i] != 0;
  else for (int64_t i = 0; i < n; i++) flags[i] = x[i] != 0;
  uint64_t bits = 0;
  for (int i = 0; i < 8; i++) {  /* eight flags, a byte each, to eight bits */
    uint64_t eight;
    memcpy(&eight, flags + 8 * i, 8);
    bits |= ((eight * 0x0102040810204080ULL) >> 56) << (8 * i);
  }
  return bits;
}

int find(int64_t rows, int64_t n, const R *restrict x, int64_t *restrict starts,
         COLUMN *restrict columns, R *restrict values) {
  int64_t k = 0;
  int graded = 0;
  for (int64_t r = 0; r < rows; r++, x += n) {
    starts[r] = k;
    for (int64_t from = 0; from < n; from += 64)
      for (uint64_t bits = fired(x + from, n - from); bits; bits &= bits - 1) {
        const int64_t j = from + __builtin_ctzll(bits);
        columns[k] = (COLUMN)j;
        values[k++] = x[j];
        graded |= x[j] != 1;
      }
  }
  starts[rows] = k;
  return graded;
}

void transpose(int64_t rows, int64_t n, const int64_t *restrict starts,
               const COLUMN *restrict columns, const R *restrict values,
               int64_t *restrict starts_t, COLUMN *restrict columns_t, R *restrict values_t) {
  memset(starts_t, 0, (n + 1) * sizeof(int64_t));
  for (int64_t k = 0; k < starts[rows]; k++) starts_t[columns[k] + 1]++;
  for (int64_t j = 0; j < n; j++) starts_t[j + 1] += starts_t[j];
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = starts[r]; k < starts[r + 1]; k++) {
      const int64_t to = starts_t[columns[k]]++;
      columns_t[to] = (COLUMN)r;
      if (values) values_t[to] = values[k];
    }
  for (int64_t j = n; j > 0; j--) starts_t[j] = starts_t[j - 1];
  starts_t[0] = 0;
}

int pack(int64_t size, const R *restrict x, uint8_t *restrict bits) {
  for (int64_t from = 0; from < size; from += 64) {
    const int64_t n = size - from < 64 ? size - from : 64;
    int32_t other = 0;
    for (int64_t i = 0; i < n; i++) other += (x[from + i] != 0) & (x[from + i] != 1);
    if (other) return 1;
    const uint64_t found = fired(x + from, n);
    memcpy(bits + from / 8, &found, (n + 7) / 8);
  }
  return 0;
}

void unpack(int64_t size, const uint8_t *restrict bits, R *restrict x) {
  const int64_t whole = size / 8;
  for (int64_t k = 0; k < whole; k++)
    for (int i = 0; i < 8; i++) x[8 * k + i] = (R)((bits[k] >> i) & 1);
  for (int64_t i = 8 * whole; i < size; i++) x[i] = (R)((bits[i / 8] >> (i % 8)) & 1);
}

/* 8 x 8 values turned in registers: pairs, then pairs of pairs, then halves */
typedef R V8 __attribute__((vector_size(8 * sizeof(R)), aligned(sizeof(R))));
static inline void tile(const R *x, int64_t n, R *out, int64_t rows) {
#if defined(__clang__) || __GNUC__ >= 12
#define MIX __builtin_shufflevector
  V8 a[8], b[8];
  for (int i = 0; i < 8; i++) a[i] = *(const V8 *)(x + i * n);
  for (int i = 0; i < 8; i += 2) {
    b[i] = MIX(a[i], a[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    b[i + 1] = MIX(a[i], a[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = i; k < i + 2; k++) {
      a[k] = MIX(b[k], b[k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[k + 2] = MIX(b[k], b[k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int k = 0; k < 4; k++) {
    b[k] = MIX(a[k], a[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    b[k + 4] = MIX(a[k], a[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i = 0; i < 8; i++) *(V8 *)(out + i * rows) = b[i];
#else
  for (int j = 0; j < 8; j++)
    for (int i = 0; i < 8; i++) out[j * rows + i] = x[i * n + j];
#endif
}

void turn(int64_t rows, int64_t n, const R *restrict x, R *restrict out) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    int64_t i = 0;
    for (; i + 8 <= rows; i += 8) tile(x + i * n + j, n, out + j * rows + i, rows);
    for (; i < rows; i++)
      for (int64_t c = j; c < j + 8; c++) out[c * rows + i] = x[i * n + c];
  }
  for (; j < n; j++)
    for (int64_t i = 0; i < rows; i++) out[j * rows + i] = x[i * n + j];
}

/* eight outputs at a time, from the weights as they are */
void pick(int64_t rows, int64_t n, int64_t m, const int64_t *restrict starts,
          const COLUMN *restrict columns, const R *restrict values, const R *restrict weight,
          R *restrict out) {
  for (int64_t i = 0; i < m; i += 8) {
    const R *row[8];
    for (int64_t c = 0; c < 8; c++) row[c] = weight + (i + c < m ? i + c : m - 1) * n;
    for (int64_t r = 0; r < rows; r++) {
      R sum[8] = {0};
      for (int64_t k = starts[r]; k < starts[r + 1]; k++) {
        const int64_t j = columns[k];
        const R value = values ? values[k] : 1;
        for (int c = 0; c < 8; c++) sum[c] += value * row[c][j];
      }
      for (int64_t c = 0; c < 8 && i + c < m; c++) out[r * m + i + c] = sum[c];
    }
  }
}

#define GATHER(NAME, COUNT)                                                                    \\
  static void NAME(int64_t rows, int64_t width, int64_t m, const int64_t *restrict starts,     \\
                   const COLUMN *restrict columns, const R *restrict values,                   \\
                   const R *restrict table, R *restrict out) {                                 \\
    for (int64_t r = 0; r < rows; r++) {                                                       \\
      V sum[COUNT];                                                                            \\
      for (int c = 0; c < COUNT; c++) sum[c] = (V){0};                                         \\
      if (values)                                                                              \\
        for (int64_t k = starts[r]; k < starts[r + 1]; k++) {                                  \\
          const V *row = (const V *)(table + columns[k] * width);                              \\
          for (int c = 0; c < COUNT; c++) sum[c] += values[k] * row[c];                        \\
        }                                                                                      \\
      else                                                                                     \\
        for (int64_t k = starts[r]; k < starts[r + 1]; k++) {                                  \\
          const V *row = (const V *)(table + columns[k] * width);                              \\
          for (int c = 0; c < COUNT; c++) sum[c] += row[c];                                    \\
        }                                                                                      \\
      for (int c = 0; c < COUNT; c++) *(V *)(out + r * m + c * LANES) = sum[c];                \\
    }                                                                                          \\
  }
GATHER(gather_8, 8)
GATHER(gather_1, 1)

/* the columns of a table [n, width], to columns of an output with m of them */
static void add_up(int64_t rows, int64_t width, int64_t m, const int64_t *restrict starts,
                   const COLUMN *restrict columns, const R *restrict values,
                   const R *restrict table, R *restrict out) {
  int64_t c = 0;
  for (; c + 8 * LANES <= width; c += 8 * LANES)
    gather_8(rows, width, m, starts, columns, values, table + c, out + c);
  for (; c + LANES <= width; c += LANES)
    gather_1(rows, width, m, starts, columns, values, table + c, out + c);
  if (c < width)
    for (int64_t r = 0; r < rows; r++) {
      R sum[LANES];
      memset(sum, 0, sizeof sum);
      for (int64_t k = starts[r]; k < starts[r + 1]; k++)
        for (int64_t i = 0; i < width - c; i++)
          sum[i] += (values ? values[k] : 1) * table[columns[k] * width + c + i];
      memcpy(out + r * m + c, sum, (width - c) * sizeof(R));
    }
}

void gather(int64_t rows, int64_t m, const int64_t *starts, const COLUMN *columns,
            const R *values, const R *table, R *out) {
  add_up(rows, m, m, starts, columns, values, table, out);
}

/* the same from weights [m, n], some outputs at a time turned into a table that stays in a cache */
void apply(int64_t rows, int64_t n, int64_t m, const int64_t *starts, const COLUMN *columns,
           const R *values, const R *weight, R *table, R *out) {
  for (int64_t c = 0; c < m; c += 8 * LANES) {
    const int64_t width = m - c < 8 * LANES ? m - c : 8 * LANES;
    turn(width, n, weight + c * n, table);
    add_up(rows, width, m, starts, columns, values, table, out + c);
  }
}
"""
