#pragma once

#include "common.cuh"
#include "dequantize.h"

#include <mutex>

// Buffers for wide copies of weights, and the stream that fills them.
struct WideWeights;

// A weight as BF16, itself or a copy, for the one product that is queued while this lives. A thread has one at a time. Its columns
// may have factors (of the norm before the product), F32 [n_in] or null.
//
// Copies are made on a stream of their own, which runs ahead of the products by so many buffers as there are. It yields to the
// products' (spts_cuda_put_first), and so works where they leave multiprocessors idle: at the end of a kernel, and while those
// run that are too small for the GPU, which select tokens. A weight that is still in a buffer is not copied again.
class WideWeight {
  public:
    WideWeight(ggml_backend_cuda_context & ctx, const ggml_tensor * w, const ggml_tensor * factors = nullptr);
    ~WideWeight();
    WideWeight(const WideWeight &) = delete;

    const nv_bfloat16 * get() const { return values; }

  private:
    bool make_ahead(const ggml_tensor * w, const ColumnFactors & factors);

    ggml_backend_cuda_context &       ctx;
    ggml_cuda_pool_alloc<nv_bfloat16> copy;           // while a graph is captured, or if the device is full
    std::unique_lock<std::mutex>      held;        // until the product is queued, and noted as a reader of its buffer
    int                               chosen = -1; // number of that buffer
    const nv_bfloat16 *               values;
};
