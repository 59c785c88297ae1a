// Products by cuBLAS in tiles of our choice.

#pragma once

#include "common.cuh"

// y [n_out, rows] = w [n_in, n_out] x [n_in, rows], of BF16, summed in F32.
struct ProductShape {
    int64_t        n_in, n_out, rows;
    int64_t        x_stride; // elements between rows of x
    cudaDataType_t type;     // of y: CUDA_R_16BF or CUDA_R_32F
    bool           adds;     // to what is in y
};

// Queues the product, if this device has better tiles for it than those that cuBLAS takes by itself. False: nothing was done.
bool multiply_in_tiles(ggml_backend_cuda_context & ctx, const nv_bfloat16 * w, const nv_bfloat16 * x, void * y, const ProductShape & shape);
