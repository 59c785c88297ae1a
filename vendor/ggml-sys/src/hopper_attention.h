// Causal attention for prompts on Hopper (sm_90a). Plain CUDA: knows nothing of ggml.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

// Query i (0 <= i < n_q) of each head sees the keys j with j <= first + i and j < n_kv. Query head h reads
// KV head h / (n_head / n_head_kv). Strides count elements. Only rows 0..n_kv-1 of K and V that some query
// sees are read, and only n_q rows of q and out are touched.
struct hopper_attention_args {
    const float * q;
    const half  * k;
    const half  * v;
    void        * out; // F32, or BF16 if out_is_bf16

    int n_q;
    int n_kv;
    int n_head;
    int n_head_kv;
    int head_dim;

    size_t q_row_stride,   q_head_stride;
    size_t k_row_stride,   k_head_stride;
    size_t v_row_stride,   v_head_stride;
    size_t out_row_stride, out_head_stride;

    int   first; // keys before the first query's own
    float scale; // of the products q*k, before the softmax

    bool out_is_bf16;

    // Which blocks of SPTS_BLOCK keys (blocks.h) each block of as many queries reads: for each head one list after the other, a
    // block of queries after the other, `list_stride` apart. A list is the number of its blocks, then the blocks in ascending order;
    // the last SPTS_BLOCKS_BEHIND that the queries see are in it. Null: all are read.
    const int32_t * lists;
    size_t          list_stride;
};

// Whether hopper_attention takes these arguments on a device of compute capability `cc` (900 for 9.0),
// which must be the current one. Looks at shapes and alignments, never at the data.
bool hopper_attention_supported(const hopper_attention_args & args, int cc);

// Enqueues the attention: no allocation, no synchronization. Arguments it does not take are an error.
cudaError_t hopper_attention(const hopper_attention_args & args, cudaStream_t stream);
