// Causal attention on the CPU, in place of ggml's behind masks: see attention.cpp.
#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// Elements of a head, at most.
#define SPTS_CPU_ATTENTION_MAX_HEAD 512

// Arguments of the operation, in op_params of its node behind those that ggml_custom_4d writes there.
enum spts_cpu_attention_argument {
    // The row of K that belongs to the first query; query i sees the rows up to that + i.
    SPTS_CPU_ATTENTION_FIRST = 8,
    // Factor on the scores (F32).
    SPTS_CPU_ATTENTION_SCALE,
    // A key is seen while the query's position minus its own is less than this; 0 for no window.
    SPTS_CPU_ATTENTION_WINDOW,
    // Work that is given out, between the threads: 0 before and after.
    SPTS_CPU_ATTENTION_TAKEN,
};

// A ggml_custom_op_t. dst F32 [d, n_head, n_q] of src0 = q F32 [d, n_q, n_head], src1 = k, src2 = v [d, n_kv, n_head_kv] of any type
// that ggml converts to F32, each a view with contiguous heads. src3 = positions of K's rows I32 [n_kv], ascending, which windows
// count by, or null if they are the rows' numbers. src4 = a further score of each head F32 [n_head], whose weight goes to no value
// (attention sinks), or null. src5 = lists of spts_cpu_block_lists, which say what keys are read, or null for all that are seen. What is missing
// is q itself: ggml takes no null.
void spts_cpu_attention(struct ggml_tensor * dst, int ith, int nth, void * userdata);

#ifdef __cplusplus
}
#endif
