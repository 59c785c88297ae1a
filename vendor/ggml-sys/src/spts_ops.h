// Meanings that our lowering gives to nodes of ggml, by marks in the end of their op_params, which ggml does not use.
// src/ggml/ops.rs (crate spts) writes them, the .cu files beside this one read them, and only on devices whose kernels know
// them (spts_cuda_takes_*). A mark is i32 [SPTS_MARK_SLOT] = SPTS_MARK; its argument stands in the slot behind.

#pragma once

#include "ggml.h"

#include <cstdint>

constexpr int     SPTS_MARK_SLOT = 12;
constexpr int32_t SPTS_MARK      = 0x53545053; // "SPTS"

// FLASH_ATTN_EXT without a mask: causal. Argument: the row of K that belongs to the first query; query i sees the rows up to
// that + i.
//
// MUL_MAT: a whole gated FFN, dst = W_down (act(W_gate x) * (W_up x)). src[0] W_down, src[1] x, src[2] W_gate, src[3] W_up.
// Argument: 0 for SiLU, 1 for GELU (tanh).
//
// SET_ROWS: adds the rows to those in dst instead of replacing them.

inline bool spts_marked(const ggml_tensor * t) {
    return t->op_params[SPTS_MARK_SLOT] == SPTS_MARK;
}

inline int32_t spts_argument(const ggml_tensor * t) {
    return t->op_params[SPTS_MARK_SLOT + 1];
}
