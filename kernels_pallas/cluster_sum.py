"""How the CTAs of a cluster add up what each has of a product, in a fixed order, and store it.

The registers of the wide matrix unit's sums are dealt to the cluster's CTAs; each adds what it
receives in the order of the CTAs, so the sum has the same bits every time. A CTA that has sent its
own and has nothing to add is done: that it need not wait for the others is what asynchronous stores
and a barrier of the receiver's are for.

The interpreter's CTAs are on their own: they store what they have, to be added up by others.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, memref, scf, vector
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.emit import (
    LANE_LAYOUT,
    LANES,
    address,
    constant,
    field,
    index_of,
    ptx,
    scalar,
    shifted,
)
from kernels_pallas.lanes import Lanes

# Of the buffer for received sums, what a barrier takes and the alignment of the rest.
_BARRIER_WORDS = 32
# Bytes of one register of all lanes.
_REGISTER_BYTES = 8 * LANES


@dataclasses.dataclass(frozen=True)
class ClusterSum:
    """The sum of a cluster's products.

    Attributes:
      lanes: operations on lanes.
      columns: of the product, which is [64, columns], that are stored.
      splits: CTAs of the cluster.
    """

    lanes: Lanes
    columns: int
    splits: int

    @property
    def _used(self) -> int:
        """Registers (of two float32) of a lane that hold sums of the columns."""
        return 2 * -(-self.columns // 8)

    @property
    def _owned(self) -> int:
        """Of those registers, the most that one CTA adds up."""
        return -(-self._used // self.splits)

    @property
    def received_size(self) -> int:
        """Length of the float32 buffer that each CTA needs in shared memory."""
        if self.splits == 1:
            return 1
        return _BARRIER_WORDS + 2 * LANES * self.splits * self._owned

    def prepare(self, received: Any) -> None:
        """Makes the flat buffer `received` ready; to be called by all CTAs at their start."""
        if self.lanes.interpret or self.splits == 1:
            return

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), LANE_LAYOUT))
        def initialise(_: Any, received: ir.Value, lane: Any) -> None:
            zero = constant(0)
            first = arith.cmpi(arith.CmpIPredicate.eq, scalar(lane.registers.item()), zero)
            branch = scf.IfOp(first)
            with ir.InsertionPoint(branch.then_block):
                rank = _rank()
                # Where registers cannot be dealt evenly, the last CTAs have one less.
                dealt = arith.subi(constant(self._used + self.splits - 1), rank)
                owned = arith.divui(dealt, constant(self.splits))
                _effect(
                    "mbarrier.init.shared::cta.b64 [$0], 1; "
                    "fence.mbarrier_init.release.cluster; "
                    "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;",
                    address(received, shared=True),
                    arith.muli(owned, constant(self.splits * _REGISTER_BYTES)),
                )
                scf.yield_([])
            _effect("bar.warp.sync 0xffffffff; barrier.cluster.arrive.relaxed.aligned;")

        initialise(received, self.lanes.index())

    def store(
        self, out: Any, received: Any, sums: jax.Array, inside: jax.Array | None = None
    ) -> None:
        """Writes the first columns of the cluster's sum, transposed, to a [columns, 64] ref.

        Args:
          out: float32[columns, 64] ref in device memory, the same for all of the cluster.
          received: after `prepare`.
          sums: float32[64, n], n a multiple of 8 and at least the columns.
          inside: int32 scalar, beyond how many columns nothing is stored, if there are fewer.
        """
        columns = self.columns
        if self.lanes.interpret:
            out[...] = sums[:, :columns].T
            return
        inside = jnp.int32(columns) if inside is None else jnp.minimum(inside, columns)
        layout = plgpu.Layout.WGMMA

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), plgpu.RefType(), layout, LANE_LAYOUT, LANE_LAYOUT)
        )
        def store(
            _: Any, out: ir.Value, received: ir.Value, sums: Any, lane: Any, inside: Any
        ) -> None:
            number, end = scalar(lane.registers.item()), scalar(inside.registers.item())
            pairs = [_pair(register) for register in list(sums.registers.flat)[: self._used]]
            if self.splits == 1:
                for position, pair in enumerate(pairs):
                    _store_pair(out, number, constant(position), pair, end)
                return
            self._emit_exchange(out, received, number, end, pairs)

        store(out, received, sums, self.lanes.index(), self.lanes.in_each(inside))

    def _emit_exchange(
        self,
        out: ir.Value,
        received: ir.Value,
        number: ir.Value,
        end: ir.Value,
        pairs: Sequence[Sequence[ir.Value]],
    ) -> None:
        """Sends a lane's registers to where they are added, adds those received, stores sums."""
        rank, barrier, splits = _rank(), address(received, shared=True), self.splits
        start = arith.addi(barrier, constant(4 * _BARRIER_WORDS))
        here = arith.addi(start, arith.shli(number, constant(3)))
        there = arith.addi(here, arith.muli(rank, constant(self._owned * _REGISTER_BYTES)))
        # All barriers of the cluster are initialised, see `prepare`.
        _effect("barrier.cluster.wait.acquire.aligned;")
        for position, pair in enumerate(pairs):
            target = arith.addi(there, constant(position // splits * _REGISTER_BYTES))
            _effect(
                "{ .reg .b32 a, b; "
                f"mapa.shared::cluster.u32 a, $0, {position % splits}; "
                f"mapa.shared::cluster.u32 b, $1, {position % splits}; "
                "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 "
                "[a], {$2, $3}, [b]; }",
                target,
                barrier,
                *pair,
            )
        receives = arith.cmpi(arith.CmpIPredicate.ult, rank, constant(self._used))
        branch = scf.IfOp(receives)
        with ir.InsertionPoint(branch.then_block):
            _effect(
                "{ .reg .pred p; wait: "
                "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 "
                "p, [$0], 0; @!p bra wait; }",
                barrier,
            )
            for turn in range(self._owned):
                total = self._emit_total(here, turn)
                position = arith.addi(rank, constant(turn * splits))
                _store_pair(out, number, position, total, end)
            scf.yield_([])

    def _emit_total(self, here: ir.Value, turn: int) -> list[ir.Value]:
        """The sum of what all CTAs have sent of the CTA's register number `turn`."""
        number = ir.F32Type.get()
        total = [arith.constant(number, 0.0)] * 2
        for source in range(self.splits):
            offset = constant((source * self._owned + turn) * _REGISTER_BYTES)
            pair = mgpu_utils.inline_ptx(
                "ld.shared.v2.f32 {$0, $1}, [$2];",
                arith.addi(here, offset),
                result_types=[number, number],
                has_side_effects=True,
            )
            total = [arith.addf(old, new) for old, new in zip(total, pair, strict=True)]
        return total


def _rank() -> ir.Value:
    return ptx("mov.u32 $0, %cluster_ctarank;")()


def _effect(template: str, *operands: ir.Value) -> None:
    mgpu_utils.inline_ptx(template, *operands, has_side_effects=True, convergent=True)


def _pair(register: ir.Value) -> list[ir.Value]:
    return [
        vector.extract(
            register, dynamic_position=[], static_position=ir.DenseI64ArrayAttr.get([offset])
        )
        for offset in range(2)
    ]


def _store_pair(
    out: ir.Value, lane: ir.Value, position: ir.Value, pair: Sequence[ir.Value], columns: ir.Value
) -> None:
    """Stores a lane's register number `position` of wgmma's sums to its place in [columns, 64]."""
    warp_row = arith.shli(field(lane, 5, 3), constant(4))
    half_row = arith.shli(field(position, 0, 1), constant(3))
    row = arith.addi(arith.addi(warp_row, field(lane, 2, 7)), half_row)
    first = arith.addi(
        arith.shli(shifted(position, 1), constant(3)), arith.shli(field(lane, 0, 3), constant(1))
    )
    for offset, value in enumerate(pair):
        column = arith.addi(first, constant(offset))
        inside = arith.cmpi(arith.CmpIPredicate.ult, column, columns)
        branch = scf.IfOp(inside)
        with ir.InsertionPoint(branch.then_block):
            memref.store(value, out, [index_of(column), index_of(row)])
            scf.yield_([])
