// Operations of ours in ggml's graphs.
//
// ggml has no way for a program to add an operation to its CUDA backend. Our graphs therefore carry ours as nodes of
// TIMESTEP_EMBEDDING, an operation of diffusion models that no graph of ours holds, which ggml neither fuses with its
// neighbours nor computes in place. op_params[0] says which operation it is, the slots behind hold its arguments.
// src/ggml/kernels.rs (crate spts) writes these nodes, only for devices that spts_cuda_takes_* accepts; spts_ops.cu computes
// them.
//
// Shapes are in ggml's order. "rows" of 16 bits are BF16. A dst that is a view (of a cache, of a hidden state) is written in
// that memory.

#pragma once

#include "ggml.h"

#include <cstdint>
#include <cstring>

enum spts_op : int32_t {
    // Causal attention without a mask: dst F32 or BF16 [d, n_head, n_q] of src0 = q F32 [d, n_q, n_head] (a view), src1 = k,
    // src2 = v F16 [d, n_kv, n_head_kv] (views). Argument 1: the row of K that belongs to the first query; query i sees the rows up to
    // that + i. Argument 2: scale (F32). src3 = lists of SPTS_BLOCK_LISTS, which say what keys are read, or null for all.
    SPTS_CAUSAL_ATTENTION,
    // Which blocks of keys (blocks.h) each block of queries reads of those that it sees: dst I32 [1 + n_blocks, n_tiles, n_head], the
    // number of blocks, then the blocks in ascending order. src0 = q, src1 = k, arguments 1 and 2 as above. The best by sampled
    // scores (block_lists.cu), so many that with those that are read in any case they have argument 3 (F32) of the weight, or of
    // the number, if argument 4 is 1. Queries from argument 5 on read all.
    SPTS_BLOCK_LISTS,
    // dst [n_out, n] = src0 [n_in, n_out] src1 [n_in, n], summed in F32 after both were rounded to BF16. src1 and dst are F32 or
    // BF16. src2 = F32 [n_in], factors on the features of src1 (taken as factors on the columns of src0), or null. Argument 1: 1 to
    // add to what is in dst (F32).
    SPTS_PRODUCT,
    // dst [n_embd, n] = W_down (act(W_gate x) * (W_up x)), with the same roundings. src0 = W_down, src1 = x [n_embd, n], src2 =
    // W_gate, src3 = W_up, src4 = F32 [1, n], a factor on each row of act(..) * .., or null, src5 = F32 [n_embd], factors on the
    // features of x as above, or null, src6 = BF16 [n_ff, 2 n] of SPTS_SCRATCH, for gate and up. Argument 1 as above, 2: 0 for SiLU, 1 for
    // GELU (tanh).
    SPTS_GATED_FFN,
    // dst F32 [1, n] = || V_down (act(V_gate y_g) * (V_up y_u)) ||, y_g over y_u = U^T x. src0 = x F32 or BF16 [n_embd, n], src1 = U
    // [n_embd, 2 rank], src2 = V_gate, then V_up [rank, 2 d_low], src3 = V_down [d_low, rank], src4 = factors on the features of x as
    // above, or null, src5 = F32 [1, n], factors on the results, or null. Argument 1: the activation.
    SPTS_PROXY_NORM,
    // dst BF16 [n_embd, n] = rms_norm(x) * weight. src0 = x F32 [n_embd, n], src1 = weight F32 [n_embd] or null for ones. Argument 1:
    // eps (F32).
    SPTS_RMS_NORM,
    // dst F32 or F16 [f, n] = src0 F32 [f, n] with its heads rotated by src1 = positions I32 [n]; frequencies are divided by src2 F32
    // [n_rot/2] or by nothing (null). Arguments 1: head size, 2: n_rot, 3: 0 if neighbours are pairs, 1 if halves are, 4: base of
    // the frequencies (F32), 5: factor on the positions (F32), 6: on the rotated values (F32).
    SPTS_ROPE,
    // dst[idx] += x, dst F32 [f, rows]. src0 = x F32 or BF16 [f, n], src1 = idx I32 [n], distinct. src2 = BF16 [f, rows] or null:
    // src2[idx] = rms_norm(dst[idx]), with argument 1: eps (F32).
    SPTS_SCATTER_ADD,
    // dst [f, n] = src0[idx], of any type, the same on both sides. src1 = idx I32 [n].
    SPTS_GATHER,
    // dst F16 = src0 F32, both contiguous.
    SPTS_STORE,
    // dst I32 [1, m]: in ascending order the indices of the m best of src0 F32 [n]. Arguments 1: so many of the last are always in,
    // in place of the worst of these, 2: so many of the first. The lower index wins ties; NaN counts as -inf.
    SPTS_TOP_K,
    // dst F32 [1, m]: 1 where src0 I32 [m] is among src1 I32 [k] (ascending), else 0.
    SPTS_IS_MEMBER,
    // dst F32 [1, n]: the mean over the heads, and the mean or the maximum over the columns of q, of softmax(scale q . k) over the
    // candidates that the column sees (equation 4 of arXiv 2601.13155). src0 = q F32 [d n_head, n_probe] of the last n_probe candidates, src1 = k F16
    // [d n_head_kv, n]. Column i sees n - n_probe + i + 1 candidates. Argument 1: scale (F32), 2: d, 3: 0
    // for the mean over columns, 1 for the maximum.
    SPTS_PROBE_SCORES,
    // Nothing: memory that dst's readers write to. src0 says when: once it is there.
    SPTS_SCRATCH,
};

inline int32_t spts_argument(const ggml_tensor * t, const int i) {
    return t->op_params[i];
}

inline float spts_float_argument(const ggml_tensor * t, const int i) {
    float value;
    memcpy(&value, &t->op_params[i], sizeof(value));
    return value;
}
