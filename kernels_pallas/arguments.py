"""Checks that both ops make of their arguments."""

from codecjax.errors import UserError
from codecjax.tiles import Residency, TiledMatrix, units_per_tile
from kernels_pallas.implementations import MOSAIC_GPU, XLA

# Codecs whose tiles the Mosaic GPU kernels decode.
_WITH_KERNELS = ("bf16", "ecsq", "int8_rans", "rans", "window")


def check_codec(codec: str, implementation: str) -> None:
    """Raises UserError where the implementation has no kernel for the codec."""
    if implementation == MOSAIC_GPU and codec not in _WITH_KERNELS:
        raise UserError(
            f"implementation {implementation!r} has no kernel for codec {codec!r}: "
            f"ask for implementation {XLA!r}"
        )


def check_kernels(t: TiledMatrix, implementation: str) -> None:
    """Raises UserError where the implementation has no kernel for the matrix as it is stored."""
    check_codec("bf16" if t.is_dense else t.codec, implementation)


def check_residency(t: TiledMatrix, residency: Residency | None) -> None:
    """Raises UserError where pages or counters do not have the matrix's tile geometry."""
    if residency is None or t.is_dense:
        return
    pages, units = residency.pages, units_per_tile(t.tile)
    if pages is not None and pages.shape[1:] != t.tile:
        raise UserError(
            f"pages of {pages.shape[1:]} cannot hold tiles of {t.tile}: "
            "encode the matrix with tiles of the page's shape"
        )
    if residency.decoded.shape != (*residency.page_table.shape, units):
        raise UserError(
            f"decoded has shape {residency.decoded.shape}: for this page table it must be "
            f"{(*residency.page_table.shape, units)}"
        )
    if residency.page_table.shape[0] < t.tiles:
        raise UserError(
            f"a page table of {residency.page_table.shape[0]} entries is too short for a matrix "
            f"of {t.tiles} tiles: give one entry for every tile"
        )
