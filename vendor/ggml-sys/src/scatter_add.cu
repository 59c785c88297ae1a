// h[idx] += x in one pass, where ggml needs a gather, a sum and a scatter.
//
// The build script compiles set-rows.cu with ggml_cuda_op_set_rows changed to ggml_cuda_op_set_rows_upstream, and this file
// defines the name that the rest calls. Marked nodes (spts_ops.h) add.

#include "common.cuh"
#include "spts_ops.h"

void ggml_cuda_op_set_rows_upstream(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

namespace {

constexpr int THREADS = 256;

// One block a row, four features a thread and turn. Indices are distinct, so nothing has to be atomic.
__global__ void scatter_add(float4 * h, const float4 * x, const int32_t * idx, const int64_t width) {
    const int64_t   row = blockIdx.x;
    float4 *        to  = h + idx[row]*width;
    const float4 * from = x + row*width;
    for (int64_t i = threadIdx.x; i < width; i += THREADS) {
        const float4 a = to[i];
        const float4 b = from[i];
        to[i] = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
    }
}

} // namespace

void ggml_cuda_op_set_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    if (!spts_marked(dst)) {
        ggml_cuda_op_set_rows_upstream(ctx, dst);
        return;
    }
    const ggml_tensor * x   = dst->src[0]; // F32 [n_feat, m]
    const ggml_tensor * idx = dst->src[1]; // I32 [m]
    GGML_ASSERT(x->type == GGML_TYPE_F32 && dst->type == GGML_TYPE_F32 && idx->type == GGML_TYPE_I32);
    GGML_ASSERT(ggml_is_contiguous(x) && ggml_is_contiguous(idx) && dst->nb[1] == dst->ne[0]*sizeof(float));
    GGML_ASSERT(x->ne[0] % 4 == 0 && x->ne[0] == dst->ne[0]);
    scatter_add<<<x->ne[1], THREADS, 0, ctx.stream()>>>(
        (float4 *) dst->data, (const float4 *) x->data, (const int32_t *) idx->data, x->ne[0]/4);
    CUDA_CHECK(cudaGetLastError());
}
