// Operations on rows of hidden states, keys and values.

#pragma once

#include "common.cuh"

void rms_norm_16(ggml_backend_cuda_context & ctx, ggml_tensor * dst); // SPTS_RMS_NORM
void scatter_add(ggml_backend_cuda_context & ctx, ggml_tensor * dst); // SPTS_SCATTER_ADD
void gather(ggml_backend_cuda_context & ctx, ggml_tensor * dst);      // SPTS_GATHER
void store(ggml_backend_cuda_context & ctx, ggml_tensor * dst);       // SPTS_STORE
