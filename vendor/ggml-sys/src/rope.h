// Rotary positions of prompts (SPTS_ROPE).

#pragma once

#include "common.cuh"

void rope(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
