// Products of many rows through cuBLAS: weights and rows as BF16, sums in F32 (spts_ops.h has the shapes).

#pragma once

#include "common.cuh"

void product(ggml_backend_cuda_context & ctx, ggml_tensor * dst);    // SPTS_PRODUCT
void gated_ffn(ggml_backend_cuda_context & ctx, ggml_tensor * dst);  // SPTS_GATED_FFN
void proxy_norm(ggml_backend_cuda_context & ctx, ggml_tensor * dst); // SPTS_PROXY_NORM
