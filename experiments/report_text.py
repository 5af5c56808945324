"""The words of a report that do not depend on its figures."""

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.lead { font-size: 1.1rem; max-width: 50rem; } p, li, dd { max-width: 50rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd;
  vertical-align: top; }
th { vertical-align: bottom; border-bottom: 2px solid #888; }
td { white-space: nowrap; } .prose { white-space: normal; min-width: 9rem; }
.text, .prose, td:first-child, th:first-child { text-align: left; }
td:first-child { font-weight: 600; } tbody tr:hover { background: #f4f7fa; }
.optimum { color: #555; background: #f7f7f4; }
.wrong { color: #a30000; font-weight: 700; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption { color: #444; max-width: 50rem; }
pre { background: #f4f4f4; padding: 0.8rem; overflow-x: auto; font-size: 0.85rem; }
dt { font-weight: 600; margin-top: 0.6rem; } dd { margin-left: 1.2rem; }
"""

CAPTIONS = {
    "tokens_per_second": (
        "Speed against cache budget",
        "Higher is faster. The dashed line stores plain bf16 and decodes nothing. The dotted "
        "line is what this device could do if a step cost no more than reading its bytes once.",
    ),
    "hit_rates": (
        "Hit rates against cache budget",
        "How much was found already decoded. A policy on the dotted line cannot be improved "
        "upon. pinned aims at the cost hit rate: keeping many small matrices instead would hit "
        "more objects and save less time. Where several policies share a budget their marks are "
        "set a little apart.",
    ),
    "device_bytes": (
        "Device memory",
        "Keeping decoded weights costs memory on top of the compressed ones, which always "
        "stay. Left of the dashed line the model takes less memory than in bf16.",
    ),
    "step_seconds": (
        "Time of each step",
        "Step 0 reads the whole prompt and, if a policy keeps weights, stores the first of "
        "them; its bars stand in the order of the legend. Each later step makes one token.",
    ),
}

GLOSSARY = (
    (
        "bf16",
        "The 16-bit number format in which models are distributed. Points named so store the "
        "weights uncompressed; they are the baseline.",
    ),
    (
        "codec, window",
        "How weights are compressed. window and rans are lossless: decoding gives back every bit. "
        "ecsq and int8_rans are lossy: decoding gives weights near those of bf16.",
    ),
    ("bits/weight", "Bits of device memory per weight of the matrices, side lists included."),
    (
        "tile, page",
        "A matrix is cut into tiles (usually 256 by 256 weights). A page is room for one "
        "decoded tile; the pages together are the cache.",
    ),
    (
        "budget",
        "Bytes that the pages may take, in brackets as a share of all weights when decoded.",
    ),
    (
        "policy",
        "Who stays in the cache: pinned (a fixed choice that saves the most decode time), lru "
        "(throws out what was used longest ago), fifo (what came first), lfu (what was used "
        "least often), none, all; belady and min_bypass know the future and are yardsticks, "
        "belady admitting every miss, min_bypass only what pays.",
    ),
    (
        "hit, miss",
        "A step uses every matrix once. It is a hit if the matrix lies decoded in the cache, "
        "otherwise a miss: its tiles are decoded on the fly.",
    ),
    (
        "object, byte and cost hit rate",
        "Hits as a share of accesses to matrices, of decoded bytes accessed, and of the decode "
        "time that would be spent without a cache. Matrices differ in size, so the three "
        "differ. Cost is counted in tiles, or in measured seconds where the config says so.",
    ),
    (
        "optimum",
        "The highest rate that any policy could reach on the same accesses with the same "
        "budget, with full knowledge of the future, each rate optimised for itself.",
    ),
    (
        "bound: seconds per token",
        "Bytes that a step must read (compressed tiles that it decodes, pages that it hits, "
        "other weights, KV cache) divided by the bandwidth of a large copy (read plus written), "
        "measured on the same device in the same run. Weights small enough for the processor's "
        "own caches can be read faster than that.",
    ),
    (
        "decode time per tile",
        "Measured apart: every shape of matrix is decoded into bf16, by slope timing, and the "
        "seconds are divided by the number of tiles. Inside a step, decoding is fused with the "
        "multiplication and overlaps it.",
    ),
    (
        "first token",
        "The step that reads the whole prompt. Tokens per second count the steps after it.",
    ),
    (
        "compile (once)",
        "Time that XLA takes to compile the two functions of a run, not in any other figure. It "
        "is next to nothing where an earlier point had compiled functions of the same shapes.",
    ),
    (
        "measured on the device",
        "What the device held at the end of the run: by its own count on a GPU, elsewhere as the "
        "sum of JAX's arrays. Besides weights, pages and KV cache it counts page table, tile "
        "record and whatever else lives.",
    ),
    (
        "bit-equal logits",
        "Logits are the scores of all tokens, which the model computes at each position. They "
        "are compared bit by bit with those of the same model in bf16, under the same "
        "implementation, over the prompt and all generated tokens; and so are those of every "
        "generating step, which read the cache.",
    ),
    (
        "divergence",
        "How far the predictions of a lossily stored model are from those of the same model in "
        "bf16: the Kullback-Leibler divergence from bf16's, in nats, the mean over the prompt and "
        "all generated tokens. 0 where both predict the same.",
    ),
    (
        "against bf16, against fastest bf16",
        "Tokens per second as a multiple of those of the bf16 point: of the one under the same "
        "implementation, and of the fastest one whatever computed it.",
    ),
    (
        "implementation",
        "What computed the multiplications and decodes: mosaic_gpu (Pallas kernels) or xla.",
    ),
    ("KV cache", "What attention keeps of earlier tokens. It has nothing to do with the pages."),
)
