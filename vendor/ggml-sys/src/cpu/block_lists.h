// Which blocks of keys a block of queries reads: see block_lists.cpp.
#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// Arguments of the operation, in op_params of its node behind those that ggml_custom_4d writes there.
enum spts_cpu_block_lists_argument {
    // The row of K that belongs to the first query; query i sees the rows up to that + i.
    SPTS_CPU_BLOCK_LISTS_FIRST = 8,
    // Factor on the scores (F32).
    SPTS_CPU_BLOCK_LISTS_SCALE,
    // Share of the weight, or of the number of blocks (F32).
    SPTS_CPU_BLOCK_LISTS_SHARE,
    // 1 if that share is one of the number.
    SPTS_CPU_BLOCK_LISTS_BY_COUNT,
    // Queries from this one on read all.
    SPTS_CPU_BLOCK_LISTS_WHOLE_FROM,
    // Work that is given out, between the threads: 0 before and after.
    SPTS_CPU_BLOCK_LISTS_TAKEN,
};

// A ggml_custom_op_t. dst I32 [1 + n_blocks, n_tiles, n_head] of src0 = q F32 [d, n_q, n_head], src1 = k [d, n_kv, n_head_kv] of any
// type that ggml converts to F32: for each block of SPTS_BLOCK queries (../blocks.h) of each head the number of blocks of keys that
// it reads, then the blocks in ascending order.
void spts_cpu_block_lists(struct ggml_tensor * dst, int ith, int nth, void * userdata);

#ifdef __cplusplus
}
#endif
