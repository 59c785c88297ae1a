// Quantized weights to BF16, at the pace of memory: what cuBLAS multiplies by.

#pragma once

#include "common.cuh"

// Factors on the columns of a matrix: one for each of n_in values of a row. A multiple of 8.
struct ColumnFactors {
    const float * values = nullptr; // null: there are none
    int64_t       n_in   = 0;
};

// to [n] = the values of `from`, times their columns' factors (which BF16 must have). Types of the usual 4-bit files have kernels
// here, the others ggml's.
void dequantize_16(ggml_type type, const void * from, nv_bfloat16 * to, int64_t n, const ColumnFactors & factors, cudaStream_t stream);
