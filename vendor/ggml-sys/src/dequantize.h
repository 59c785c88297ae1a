// Quantized weights to BF16, at the pace of memory: what cuBLAS multiplies by.

#pragma once

#include "common.cuh"

// to [n] = the values of `from`. Types of the usual 4-bit files have kernels here, the others ggml's.
void dequantize_16(ggml_type type, const void * from, nv_bfloat16 * to, int64_t n, cudaStream_t stream);
