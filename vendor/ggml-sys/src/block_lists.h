// Which blocks of keys a block of queries reads: see block_lists.cu.
#pragma once

#include "common.cuh"

void block_lists(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
