#include "rope.h"
#include "spts_ops.h"

#include <cmath>

namespace {

constexpr int THREADS   = 256;
constexpr int MAX_PAIRS = 256; // of a head

struct Rotation {
    int    head_dim, n_rot; // the rest of a head is copied
    double log2_base;       // of the frequencies
    float  scale;           // of the positions
    float  factor;          // of the rotated values
};

__device__ void put(float * to, const float value) {
    *to = value;
}

__device__ void put(half * to, const float value) {
    *to = __float2half(value);
}

// One block a row: the angles of a position serve all of its heads. They are computed in double precision, since a position
// of 100,000 leaves F32 two digits of an angle.
template <bool halves, typename Out> __global__ void rope_kernel(
        const float * x, const int32_t * positions, const float * factors, Out * dst, const int width, const int64_t dst_stride, const Rotation r) {
    __shared__ float2 turn[MAX_PAIRS];
    const int pairs = r.n_rot/2;
    for (int i = threadIdx.x; i < pairs; i += THREADS) {
        const double frequency = exp2(-2.0*i/r.n_rot*r.log2_base)*r.scale/(factors != nullptr ? factors[i] : 1.0f);
        double       sin, cos;
        sincos(positions[blockIdx.x]*frequency, &sin, &cos);
        turn[i] = make_float2((float) cos*r.factor, (float) sin*r.factor);
    }
    __syncthreads();
    const float * from = x + int64_t(blockIdx.x)*width;
    Out *         to   = dst + blockIdx.x*dst_stride;
    const int half_head = r.head_dim/2;
    for (int i = threadIdx.x; i < width/2; i += THREADS) {
        const int head = i/half_head, pair = i - head*half_head;
        const int first  = head*r.head_dim + (halves ? pair + (pair < pairs ? 0 : pairs) : 2*pair);
        const int second = halves && pair < pairs ? first + pairs : first + (halves ? half_head - pairs : 1);
        const float a = from[first], b = from[second];
        if (pair < pairs) {
            const float2 t = turn[pair];
            put(to + first,  a*t.x - b*t.y);
            put(to + second, a*t.y + b*t.x);
        } else {
            put(to + first,  a);
            put(to + second, b);
        }
    }
}

template <typename Out> void launch(ggml_tensor * dst, cudaStream_t stream) {
    const ggml_tensor * x       = dst->src[0];
    const ggml_tensor * factors = dst->src[2];
    const Rotation r = {
        spts_argument(dst, 1), spts_argument(dst, 2), std::log2((double) spts_float_argument(dst, 4)),
        spts_float_argument(dst, 5), spts_float_argument(dst, 6),
    };
    GGML_ASSERT(r.n_rot/2 <= MAX_PAIRS && r.n_rot <= r.head_dim && x->ne[0] % r.head_dim == 0);
    const auto kernel = spts_argument(dst, 3) != 0 ? rope_kernel<true, Out> : rope_kernel<false, Out>;
    kernel<<<x->ne[1], THREADS, 0, stream>>>((const float *) x->data, (const int32_t *) dst->src[1]->data,
        factors != nullptr ? (const float *) factors->data : nullptr, (Out *) dst->data, x->ne[0], dst->nb[1]/sizeof(Out), r);
    CUDA_CHECK(cudaGetLastError());
}

} // namespace

void rope(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    GGML_ASSERT(dst->src[0]->type == GGML_TYPE_F32 && ggml_is_contiguous(dst->src[0]));
    GGML_ASSERT(dst->type == GGML_TYPE_F32 || dst->type == GGML_TYPE_F16);
    dst->type == GGML_TYPE_F32 ? launch<float>(dst, ctx.stream()) : launch<half>(dst, ctx.stream());
}
