// Scoring candidates by probing queries, and choosing the best.

#pragma once

#include "common.cuh"

void probe_scores(ggml_backend_cuda_context & ctx, ggml_tensor * dst); // SPTS_PROBE_SCORES
void top_k(ggml_backend_cuda_context & ctx, ggml_tensor * dst);        // SPTS_TOP_K
void is_member(ggml_backend_cuda_context & ctx, ggml_tensor * dst);    // SPTS_IS_MEMBER
