// Causal attention of prompts (SPTS_CAUSAL_ATTENTION) on devices that our own kernel knows.

#pragma once

#include "common.cuh"

void causal_attention(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
