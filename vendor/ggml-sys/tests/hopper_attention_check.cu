// Checks and times hopper_attention on a Hopper GPU. Stands alone; from vendor/ggml-sys:
//
//     nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a -Isrc -o /tmp/hopper_attention_check
//         tests/hopper_attention_check.cu src/hopper_attention.cu
//     /tmp/hopper_attention_check            # checks, then timings
//     /tmp/hopper_attention_check time       # timings only
//     /tmp/hopper_attention_check small      # a few small checks, for compute-sanitizer
//
// Every buffer is longer than what the kernel may touch, and the rest is NaN: what is read beyond shows in the
// result, what is written beyond shows in the rest. The exit status is 0 if all is right.

#include "hopper_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define CHECK(call)                                                                                \
    do {                                                                                           \
        const cudaError_t error_ = (call);                                                         \
        if (error_ != cudaSuccess) {                                                               \
            std::printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error_));            \
            std::exit(2);                                                                          \
        }                                                                                          \
    } while (0)

namespace {

constexpr double MAX_NORM_ERROR  = 1e-3; // F16 rounds q and P: about 3e-4
constexpr double MAX_ENTRY_ERROR = 4e-3; // of the largest entry of its row
constexpr double STEEP_FACTOR    = 20;   // on both, where rounding q moves large scores
constexpr int    GUARD_ROWS      = 160;  // more than a tile
constexpr int    MAX_SAMPLES     = 192;  // query rows compared of a long prompt

struct problem {
    int n_q, n_kv, first, n_head, n_head_kv, head_dim;
    int  gap; // unused elements at the end of each row of q and out
    bool steep = false;      // scores far larger for the earlier keys: the maximum of a row keeps rising
    bool head_major = false; // K and V store head after head, not row after row
};

// --- Data --------------------------------------------------------------------------------------------------

__device__ uint32_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return static_cast<uint32_t>((x ^ (x >> 31)) >> 32);
}

// Normally distributed, by Box and Muller.
__device__ float normal(const uint64_t seed, const uint64_t i) {
    const float u = (mix(seed + 2 * i) + 1.0f) * 0x1p-32f;
    const float v = mix(seed + 2 * i + 1) * 0x1p-32f;
    return sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
}

template <class T> __global__ void fill_normal(T * x, const size_t n, const uint64_t seed) {
    for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
        x[i] = static_cast<T>(normal(seed << 40, i));
    }
}

__global__ void steepen(half * k, const size_t n, const int row_size, const int n_rows) {
    for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
        k[i] = __float2half(__half2float(k[i]) * 30.0f * (1.0f - float(i / row_size) / n_rows));
    }
}

// Elements with all bits set (a NaN in any type), before and after the `n` in the middle.
template <class T> struct guarded {
    T *    all = nullptr;
    T *    data = nullptr;
    size_t guard, n;

    guarded(const size_t count, const size_t guard_count) : guard(guard_count), n(count) {
        CHECK(cudaMalloc(&all, (n + 2 * guard) * sizeof(T)));
        CHECK(cudaMemset(all, 0xff, (n + 2 * guard) * sizeof(T)));
        data = all + guard;
    }
    ~guarded() { cudaFree(all); }
    guarded(const guarded &) = delete;
    guarded & operator=(const guarded &) = delete;
};

struct tensors {
    guarded<float> q;
    guarded<half>  k, v;
    guarded<float> out;

    hopper_attention_args args;

    tensors(const problem & p, const uint64_t seed)
        : q(size_t(p.n_q) * (p.n_head * p.head_dim + p.gap), size_t{GUARD_ROWS} * (p.n_head * p.head_dim + p.gap)),
          k(size_t(visible(p)) * p.n_head_kv * p.head_dim, size_t{GUARD_ROWS} * p.n_head_kv * p.head_dim),
          v(k.n, k.guard), out(q.n, q.guard) {
        fill_normal<<<1024, 256>>>(q.data, q.n, 4 * seed + 1);
        fill_normal<<<1024, 256>>>(k.data, k.n, 4 * seed + 2);
        fill_normal<<<1024, 256>>>(v.data, v.n, 4 * seed + 3);
        if (p.steep) {
            steepen<<<1024, 256>>>(k.data, k.n, p.n_head_kv * p.head_dim, visible(p));
        }
        CHECK(cudaGetLastError());
        const size_t row = p.n_head * p.head_dim + p.gap;
        const size_t head = p.head_dim;
        const size_t row_kv = p.head_major ? p.head_dim : p.n_head_kv * p.head_dim;
        const size_t head_kv = p.head_major ? size_t(visible(p)) * p.head_dim : p.head_dim;
        args = {q.data, k.data, v.data, out.data, p.n_q, p.n_kv, p.n_head, p.n_head_kv, p.head_dim,
                row, head, row_kv, head_kv, row_kv, head_kv, row, head, p.first, 1.0f / std::sqrt(float(p.head_dim))};
    }

    // Rows of K and V that exist: the rest up to n_kv, if any, is NaN and must not matter.
    static int visible(const problem & p) { return std::min(p.n_kv, p.first + p.n_q); }
};

// --- Reference ---------------------------------------------------------------------------------------------

// One block for one query of one head, all in F32: scores of 1024 keys at a time, then their values.
__global__ void reference(const hopper_attention_args a, const int * rows, float * result) {
    constexpr int CHUNK = 1024;
    __shared__ float scores[CHUNK];
    __shared__ float query[128];
    __shared__ float shared_top;
    const int row  = rows[blockIdx.x];
    const int head = blockIdx.y;
    const int kv   = head / (a.n_head / a.n_head_kv);
    const int keys = min(a.n_kv, a.first + row + 1);
    const int t    = threadIdx.x; // one of 128
    if (t < a.head_dim) {
        query[t] = a.q[row * a.q_row_stride + head * a.q_head_stride + t] * a.scale;
    }
    float top = -INFINITY, sum = 0.0f, value = 0.0f;
    for (int start = 0; start < keys; start += CHUNK) {
        const int n = min(CHUNK, keys - start);
        __syncthreads();
        for (int j = t; j < n; j += blockDim.x) {
            const half * k = a.k + (start + j) * a.k_row_stride + kv * a.k_head_stride;
            float s = 0.0f;
            for (int d = 0; d < a.head_dim; d += 2) {
                const float2 x = __half22float2(*reinterpret_cast<const half2 *>(k + d));
                s += query[d] * x.x + query[d + 1] * x.y;
            }
            scores[j] = s;
        }
        __syncthreads();
        if (t < 32) {
            float m = top;
            for (int j = t; j < n; j += 32) {
                m = fmaxf(m, scores[j]);
            }
            for (int step = 16; step > 0; step /= 2) {
                m = fmaxf(m, __shfl_xor_sync(~0u, m, step));
            }
            shared_top = m;
        }
        __syncthreads();
        const float factor = expf(top - shared_top);
        top = shared_top;
        sum *= factor;
        value *= factor;
        for (int j = 0; j < n; ++j) {
            const float p = expf(scores[j] - top);
            sum += p;
            if (t < a.head_dim) {
                value += p * __half2float(a.v[(start + j) * a.v_row_stride + kv * a.v_head_stride + t]);
            }
        }
    }
    if (t < a.head_dim) {
        result[(size_t(blockIdx.x) * a.n_head + head) * a.head_dim + t] = value / sum;
    }
}

// --- Checks ------------------------------------------------------------------------------------------------

bool is_poison(const float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits == ~0u;
}

std::vector<int> sampled_rows(const int n_q) {
    std::vector<int> rows;
    if (n_q <= 2 * MAX_SAMPLES) {
        for (int i = 0; i < n_q; ++i) {
            rows.push_back(i);
        }
        return rows;
    }
    for (int i = 0; i < MAX_SAMPLES; ++i) { // odd steps, which hit all places in a tile, and both ends
        rows.push_back(int(int64_t{i} * (n_q - 1) / (MAX_SAMPLES - 1)));
    }
    return rows;
}

bool check(const problem & p, const uint64_t seed) {
    const tensors t(p, seed);
    const hopper_attention_args & a = t.args;
    if (!hopper_attention_supported(a, 900)) {
        std::printf("not supported\n");
        return false;
    }
    CHECK(hopper_attention(a, nullptr));
    CHECK(cudaDeviceSynchronize());

    const std::vector<int> rows = sampled_rows(p.n_q);
    int *   device_rows   = nullptr;
    float * device_result = nullptr;
    const size_t row_size = size_t(p.n_head) * p.head_dim;
    CHECK(cudaMalloc(&device_rows, rows.size() * sizeof(int)));
    CHECK(cudaMalloc(&device_result, rows.size() * row_size * sizeof(float)));
    CHECK(cudaMemcpy(device_rows, rows.data(), rows.size() * sizeof(int), cudaMemcpyHostToDevice));
    reference<<<dim3(rows.size(), p.n_head), 128>>>(a, device_rows, device_result);
    CHECK(cudaGetLastError());
    std::vector<float> wanted(rows.size() * row_size);
    std::vector<float> got(t.out.n + 2 * t.out.guard);
    CHECK(cudaMemcpy(wanted.data(), device_result, wanted.size() * sizeof(float), cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(got.data(), t.out.all, got.size() * sizeof(float), cudaMemcpyDeviceToHost));

    // Once more: another result would mean that threads do not wait for one another.
    std::vector<float> again(got.size());
    CHECK(hopper_attention(a, nullptr));
    CHECK(cudaMemcpy(again.data(), t.out.all, again.size() * sizeof(float), cudaMemcpyDeviceToHost));
    const bool same = std::memcmp(got.data(), again.data(), got.size() * sizeof(float)) == 0;

    CHECK(cudaFree(device_rows));
    CHECK(cudaFree(device_result));

    double difference = 0, norm = 0, worst = 0;
    bool   finite = true;
    for (size_t r = 0; r < rows.size(); ++r) {
        for (int head = 0; head < p.n_head; ++head) {
            const float * x = &got[t.out.guard + rows[r] * a.out_row_stride + head * a.out_head_stride];
            const float * y = &wanted[r * row_size + size_t(head) * p.head_dim];
            double largest = 0, off = 0;
            for (int d = 0; d < p.head_dim; ++d) {
                const double e = double(x[d]) - y[d];
                finite = finite && std::isfinite(e);
                difference += e * e;
                norm += double(y[d]) * y[d];
                off     = std::max(off, std::abs(e));
                largest = std::max(largest, std::abs(double(y[d])));
            }
            worst = std::max(worst, off / largest);
        }
    }
    // Every element of a row is written, none between the rows, none outside.
    size_t unwritten = 0, trespassed = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        const size_t place  = i - t.out.guard; // huge before the data
        const bool   inside = place < t.out.n && place % a.out_row_stride < row_size;
        unwritten += inside && !std::isfinite(got[i]);
        trespassed += !inside && !is_poison(got[i]);
    }
    const double error = std::sqrt(difference / norm);
    const double allowed = p.steep ? STEEP_FACTOR : 1;
    const bool   right = finite && same && unwritten == 0 && trespassed == 0 && error < MAX_NORM_ERROR * allowed &&
                       worst < MAX_ENTRY_ERROR * allowed;
    std::printf("%-5s d %3d heads %2d:%d n_q %5d first %5d n_kv %5d gap %d%s%s: norm error %.2e, worst entry %.2e",
                right ? "ok" : "WRONG", p.head_dim, p.n_head, p.n_head_kv, p.n_q, p.first, p.n_kv, p.gap,
                p.steep ? " steep" : "", p.head_major ? " head-major" : "", error, worst);
    if (!same) {
        std::printf(", not the same twice");
    }
    if (unwritten != 0 || trespassed != 0) {
        std::printf(", %zu not written or not finite, %zu written outside", unwritten, trespassed);
    }
    std::printf("\n");
    return right;
}

// What the kernel cannot take must be refused.
bool check_refusals() {
    const tensors t({8, 8, 0, 4, 2, 128, 0}, 1);
    int taken = 0;
    const auto refused = [&](const auto change, const int cc = 900) {
        hopper_attention_args a = t.args;
        change(a);
        taken += hopper_attention_supported(a, cc);
    };
    refused([](auto &) {}, 860);
    refused([](auto & a) { a.head_dim = 96; });
    refused([](auto & a) { a.n_head_kv = 3; });
    refused([](auto & a) { a.n_q = 0; });
    refused([](auto & a) { a.n_kv = 0; });
    refused([](auto & a) { a.first = -1; });
    refused([](auto & a) { a.q += 1; });
    refused([](auto & a) { a.k += 4; });
    refused([](auto & a) { a.v_row_stride += 4; });
    refused([](auto & a) { a.q_row_stride += 2; });
    refused([](auto & a) { a.out_row_stride += 1; });
    std::printf("%-5s refusals\n", taken == 0 ? "ok" : "WRONG");
    return taken == 0;
}

// --- Timings -----------------------------------------------------------------------------------------------

void time(const problem & p) {
    const tensors t(p, 77);
    cudaEvent_t start, stop;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&stop));
    std::vector<float> times;
    for (int i = 0; i < 16; ++i) { // three to warm up
        CHECK(cudaEventRecord(start));
        CHECK(hopper_attention(t.args, nullptr));
        CHECK(cudaEventRecord(stop));
        CHECK(cudaEventSynchronize(stop));
        float ms = 0;
        CHECK(cudaEventElapsedTime(&ms, start, stop));
        if (i >= 3) {
            times.push_back(ms);
        }
    }
    std::sort(times.begin(), times.end());
    double pairs = 0;
    for (int i = 0; i < p.n_q; ++i) {
        pairs += std::min(p.n_kv, p.first + i + 1);
    }
    const double flop = 4.0 * p.head_dim * p.n_head * pairs;
    const double ms   = times[times.size() / 2];
    std::printf("time  d %3d heads %2d:%d n_q %5d n_kv %5d: median %8.3f ms (%.3f to %.3f), %6.1f TFLOP/s\n",
                p.head_dim, p.n_head, p.n_head_kv, p.n_q, p.n_kv, ms, times.front(), times.back(), flop / ms * 1e-9);
    CHECK(cudaEventDestroy(start));
    CHECK(cudaEventDestroy(stop));
}

} // namespace

int main(const int argc, char ** argv) {
    const auto mode = [&](const char * name) { return argc > 1 && std::strcmp(argv[1], name) == 0; };
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    std::printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);

    bool     right = true;
    uint64_t seed  = 1;
    const int heads[][2] = {{32, 8}, {4, 4}, {14, 2}, {9, 3}};
    if (mode("small")) {
        right &= check_refusals();
        for (const int d : {128, 64}) {
            right &= check({130, 130, 0, 4, 2, d, 0}, seed++);
            right &= check({7, 300, 293, 4, 2, d, 8}, seed++);
        }
    } else if (!mode("time")) {
        right &= check_refusals();
        for (const int d : {128, 64}) {
            for (const auto & h : heads) {
                for (const int first : {0, 37, 1000}) {
                    for (const int n_q : {1, 7, 128, 300}) {
                        right &= check({n_q, first + n_q, first, h[0], h[1], d, n_q % 3 * 4}, seed++);
                    }
                }
            }
            right &= check({300, 200, 0, 8, 2, d, 0}, seed++);       // more queries than keys
            right &= check({300, 1000, 100, 8, 2, d, 4}, seed++);    // keys that no query sees
            right &= check({1000, 3000, 2000, 8, 2, d, 0, true}, seed++);
            right &= check({500, 777, 277, 6, 3, d, 0, false, true}, seed++);
            right &= check({4096, 4096, 0, 32, 8, d, 0}, seed++);
            right &= check({4096, 4133, 37, 14, 2, d, 0}, seed++);
            right &= check({4096, 32768, 28672, 32, 8, d, 0}, seed++);
        }
    }
    if (!mode("small")) {
        time({8192, 8192, 0, 14, 2, 64, 0});
        time({2048, 2048, 0, 32, 8, 128, 0});
        time({8192, 8192, 0, 32, 8, 128, 0});
        time({9216, 9216, 0, 32, 8, 128, 0});
        time({4096, 32768, 28672, 32, 8, 128, 0});
        time({512, 32768, 32256, 32, 8, 128, 0});
        time({32768, 32768, 0, 32, 8, 128, 0});
    }
    std::printf(right ? "all right\n" : "WRONG\n");
    return right ? 0 : 1;
}
