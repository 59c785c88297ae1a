#include "rows.h"
#include "spts_ops.h"

namespace {

constexpr int THREADS = 256;

unsigned blocks(const int64_t items) {
    return (unsigned) ((items + THREADS - 1)/THREADS);
}

// Four BF16 values: what a thread writes at a time.
struct alignas(8) Bf16x4 {
    nv_bfloat162 low, high;
};

__device__ Bf16x4 scaled(const float4 x, const float4 w, const float scale) {
    return {__floats2bfloat162_rn(x.x*scale*w.x, x.y*scale*w.y), __floats2bfloat162_rn(x.z*scale*w.z, x.w*scale*w.w)};
}

__device__ float squares(const float4 x) {
    return x.x*x.x + x.y*x.y + x.z*x.z + x.w*x.w;
}

__device__ float4 widened(const float4 x) {
    return x;
}

__device__ float4 widened(const Bf16x4 x) {
    const float2 low = __bfloat1622float2(x.low), high = __bfloat1622float2(x.high);
    return make_float4(low.x, low.y, high.x, high.y);
}

__device__ float4 sum(const float4 a, const float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// A row of `width` times four features in the hands of one block. Of rows up to 4*THREADS*KEPT features each is read once.
constexpr int KEPT = 8;

class Row {
  public:
    // `value(i)` gives the row's i-th four features. It is called once for each.
    template <typename Value> __device__ Row(const int width, const float eps, const Value & value) : width(width) {
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const int i = threadIdx.x + k*THREADS;
            if (i < width) {
                kept[k] = value(i);
                sum += squares(kept[k]);
            }
        }
        for (int i = threadIdx.x + KEPT*THREADS; i < width; i += THREADS) {
            sum += squares(value(i));
        }
        __shared__ float partial[THREADS/WARP_SIZE];
        sum = warp_reduce_sum(sum);
        if (threadIdx.x % WARP_SIZE == 0) {
            partial[threadIdx.x/WARP_SIZE] = sum;
        }
        __syncthreads();
        sum = 0.0f;
#pragma unroll
        for (int k = 0; k < THREADS/WARP_SIZE; k++) {
            sum += partial[k];
        }
        scale = rsqrtf(sum/(4*width) + eps);
    }

    // to[i] = the row over its root mean square, times weight[i] unless that is null.
    template <typename Value> __device__ void write(Bf16x4 * to, const float4 * weight, const Value & value) const {
        const auto put = [&](const int i, const float4 x) {
            to[i] = scaled(x, weight != nullptr ? weight[i] : make_float4(1.0f, 1.0f, 1.0f, 1.0f), scale);
        };
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const int i = threadIdx.x + k*THREADS;
            if (i < width) {
                put(i, kept[k]);
            }
        }
        for (int i = threadIdx.x + KEPT*THREADS; i < width; i += THREADS) {
            put(i, value(i));
        }
    }

  private:
    int    width;
    float4 kept[KEPT];
    float  scale;
};

__global__ void rms_norm_16_kernel(const float4 * x, const float4 * weight, Bf16x4 * dst, const int width, const float eps) {
    const int64_t row   = blockIdx.x;
    const auto    value = [&](const int i) { return x[row*width + i]; };
    Row(width, eps, value).write(dst + row*width, weight, value);
}

// One block a row, four features a thread and turn. Indices are distinct, so nothing has to be atomic.
template <typename Four> __global__ void scatter_add_kernel(float4 * h, const Four * x, const int32_t * idx, const int64_t width) {
    float4 *     to   = h + int64_t(idx[blockIdx.x])*width;
    const Four * from = x + int64_t(blockIdx.x)*width;
    for (int64_t i = threadIdx.x; i < width; i += THREADS) {
        to[i] = sum(to[i], widened(from[i]));
    }
}

// The same, and the sums' norms in the rows `idx` of `normed`.
template <typename Four> __global__ void scatter_add_norm_kernel(float4 * h, const Four * x, const int32_t * idx, Bf16x4 * normed,
                                                                 const int width, const float eps) {
    const int64_t row   = idx[blockIdx.x];
    float4 *      to    = h + row*width;
    const Four *  from  = x + int64_t(blockIdx.x)*width;
    const auto    add   = [&](const int i) { return to[i] = sum(to[i], widened(from[i])); };
    const auto    there = [&](const int i) { return to[i]; };
    Row(width, eps, add).write(normed + row*width, nullptr, there);
}

// Rows of `width` words; blockDim.y rows a block.
template <typename Word> __global__ void gather_kernel(Word * dst, const Word * src, const int32_t * idx, const int width,
                                                       const int64_t n, const int64_t dst_stride, const int64_t src_stride) {
    const int64_t row = int64_t(blockIdx.x)*blockDim.y + threadIdx.y;
    if (row >= n) {
        return;
    }
    const Word * from = src + idx[row]*src_stride;
    Word *       to   = dst + row*dst_stride;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        to[i] = from[i];
    }
}

template <typename Word> void gather_words(ggml_tensor * dst, cudaStream_t stream) {
    const ggml_tensor * src   = dst->src[0];
    const ggml_tensor * idx   = dst->src[1];
    const int           width = ggml_row_size(dst->type, dst->ne[0])/sizeof(Word);
    const int64_t       n     = dst->ne[1];
    unsigned across = 1; // threads of a row
    while (across < THREADS && across < (unsigned) width) {
        across *= 2;
    }
    const dim3 threads(across, THREADS/across);
    gather_kernel<<<(n + threads.y - 1)/threads.y, threads, 0, stream>>>((Word *) dst->data, (const Word *) src->data,
        (const int32_t *) idx->data, width, n, dst->nb[1]/sizeof(Word), src->nb[1]/sizeof(Word));
}

// Eight values a thread.
struct alignas(16) Half8 {
    half2 pair[4];
};

__global__ void store_kernel(Half8 * dst, const float4 * src, const int64_t n) {
    const int64_t i = int64_t(blockIdx.x)*THREADS + threadIdx.x;
    if (i < n) {
        const float4 a = src[2*i], b = src[2*i + 1];
        dst[i] = {{__floats2half2_rn(a.x, a.y), __floats2half2_rn(a.z, a.w), __floats2half2_rn(b.x, b.y), __floats2half2_rn(b.z, b.w)}};
    }
}

} // namespace

void rms_norm_16(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * x      = dst->src[0];
    const ggml_tensor * weight = dst->src[1];
    GGML_ASSERT(x->type == GGML_TYPE_F32 && dst->type == GGML_TYPE_BF16 && (weight == nullptr || weight->type == GGML_TYPE_F32));
    GGML_ASSERT(x->ne[0] % 4 == 0 && ggml_is_contiguous(x) && ggml_is_contiguous(dst));
    rms_norm_16_kernel<<<dst->ne[1], THREADS, 0, ctx.stream()>>>((const float4 *) x->data,
        weight != nullptr ? (const float4 *) weight->data : nullptr, (Bf16x4 *) dst->data, x->ne[0]/4, spts_float_argument(dst, 1));
    CUDA_CHECK(cudaGetLastError());
}

void scatter_add(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * x      = dst->src[0];
    const ggml_tensor * idx    = dst->src[1];
    const ggml_tensor * normed = dst->src[2];
    GGML_ASSERT((x->type == GGML_TYPE_F32 || x->type == GGML_TYPE_BF16) && dst->type == GGML_TYPE_F32 && idx->type == GGML_TYPE_I32);
    GGML_ASSERT(ggml_is_contiguous(x) && ggml_is_contiguous(idx) && ggml_is_contiguous(dst));
    GGML_ASSERT(x->ne[0] % 4 == 0 && x->ne[0] == dst->ne[0]);
    GGML_ASSERT(normed == nullptr || (normed->type == GGML_TYPE_BF16 && ggml_is_contiguous(normed) && ggml_are_same_shape(normed, dst)));
    const int  width  = x->ne[0]/4;
    const auto launch = [&](const auto * rows) {
        float4 *        h    = (float4 *) dst->data;
        const int32_t * list = (const int32_t *) idx->data;
        if (normed == nullptr) {
            scatter_add_kernel<<<x->ne[1], THREADS, 0, ctx.stream()>>>(h, rows, list, width);
        } else {
            scatter_add_norm_kernel<<<x->ne[1], THREADS, 0, ctx.stream()>>>(
                h, rows, list, (Bf16x4 *) normed->data, width, spts_float_argument(dst, 1));
        }
    };
    x->type == GGML_TYPE_F32 ? launch((const float4 *) x->data) : launch((const Bf16x4 *) x->data);
    CUDA_CHECK(cudaGetLastError());
}

void gather(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * src = dst->src[0];
    GGML_ASSERT(src->type == dst->type && src->ne[0] == dst->ne[0] && dst->src[1]->type == GGML_TYPE_I32);
    const size_t parts   = ggml_row_size(dst->type, dst->ne[0]) | dst->nb[1] | src->nb[1] | (size_t) dst->data | (size_t) src->data;
    const auto   divides = [&](const size_t word) { return parts % word == 0; };
    if (divides(sizeof(int4))) {
        gather_words<int4>(dst, ctx.stream());
    } else if (divides(sizeof(int))) {
        gather_words<int>(dst, ctx.stream());
    } else {
        gather_words<short>(dst, ctx.stream());
    }
    CUDA_CHECK(cudaGetLastError());
}

void store(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * src = dst->src[0];
    const int64_t       n   = ggml_nelements(dst);
    GGML_ASSERT(src->type == GGML_TYPE_F32 && dst->type == GGML_TYPE_F16 && ggml_nelements(src) == n && n % 8 == 0);
    GGML_ASSERT(ggml_is_contiguous(src) && ggml_is_contiguous(dst));
    store_kernel<<<blocks(n/8), THREADS, 0, ctx.stream()>>>((Half8 *) dst->data, (const float4 *) src->data, n/8);
    CUDA_CHECK(cudaGetLastError());
}
