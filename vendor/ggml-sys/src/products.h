// Products of many rows by quantized matrices through cuBLAS: weights and rows as bf16, sums in F32.

#pragma once

#include "common.cuh"
#include "convert.cuh"

// dst [n_out, rows] = w [n_in, n_out] x [n_in, rows]; x and dst are F32 and contiguous.
void product(ggml_backend_cuda_context & ctx, const ggml_tensor * w, const ggml_tensor * x, ggml_tensor * dst);

// The FFN that a marked node stands for (spts_ops.h).
void gated_ffn(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
