// Blocks of queries and keys, of which attention may read some alone: what the CPU's and CUDA's kernels agree on.
#pragma once

// Queries, and keys, of a block.
#define SPTS_BLOCK 128

// Queries, and keys, of which one antidiagonal is looked at to judge a block.
#define SPTS_BLOCK_STRIDE 16

// The last blocks that a block of queries sees are read in any case, so many of them; and the first one is.
#define SPTS_BLOCKS_BEHIND 3
