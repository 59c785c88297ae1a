// Times the products of a long prompt in every kernel that cuBLAS offers for them, its first choice first. Stands alone; from
// vendor/ggml-sys, on a Hopper GPU:
//
//     nvcc -O2 -std=c++17 -arch=sm_90a -o /tmp/product_tiles_check tests/product_tiles_check.cu -lcublasLt
//     /tmp/product_tiles_check
//
// A product runs for some milliseconds without a pause, so that the card is at its power limit as it is in a prompt; kernels
// take turns in random order. Figures are medians, in TFLOP/s, behind each kernel's tile and cluster.

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#define CHECK(call)                                                          \
    do {                                                                     \
        const int error_ = (int) (call);                                     \
        if (error_ != 0) {                                                   \
            std::printf("%s:%d: error %d\n", __FILE__, __LINE__, error_);    \
            std::exit(2);                                                    \
        }                                                                    \
    } while (0)

namespace {

using bf16 = __nv_bfloat16;

// Values as dense as weights and activations are: what a product costs depends on them.
__global__ void fill(bf16 * to, const size_t n, const uint32_t seed) {
    for (size_t i = blockIdx.x*(size_t) blockDim.x + threadIdx.x; i < n; i += gridDim.x*(size_t) blockDim.x) {
        uint32_t x = (uint32_t) i*2654435761u + seed;
        float sum = -2.0f; // of four uniform ones: close to a normal one
        for (int k = 0; k < 4; k++) {
            x ^= x << 13; x ^= x >> 17; x ^= x << 5;
            sum += x*(1.0f/4294967296.0f);
        }
        to[i] = __float2bfloat16(sum);
    }
}

const char * name(const uint32_t tile) {
    switch (tile) {
        case CUBLASLT_MATMUL_TILE_128x128: return "128x128";
        case CUBLASLT_MATMUL_TILE_128x160: return "128x160";
        case CUBLASLT_MATMUL_TILE_128x192: return "128x192";
        case CUBLASLT_MATMUL_TILE_128x256: return "128x256";
        case CUBLASLT_MATMUL_TILE_168x128: return "168x128";
        case CUBLASLT_MATMUL_TILE_176x128: return "176x128";
        case CUBLASLT_MATMUL_TILE_192x128: return "192x128";
        case CUBLASLT_MATMUL_TILE_192x192: return "192x192";
        case CUBLASLT_MATMUL_TILE_256x128: return "256x128";
        case CUBLASLT_MATMUL_TILE_320x128: return "320x128";
        default:                           return nullptr;
    }
}

struct Product {
    int64_t        n_in, n_out, rows;
    cudaDataType_t type; // of the result
};

void time_kernels(const cublasLtHandle_t handle, const bf16 * w, const bf16 * x, void * y, const Product & p) {
    cublasLtMatmulDescOpaque_t       product;
    cublasLtMatrixLayoutOpaque_t     lw, lx, ly;
    cublasLtMatmulPreferenceOpaque_t preference;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    CHECK(cublasLtMatmulDescInit(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CHECK(cublasLtMatmulDescSetAttribute(&product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
    CHECK(cublasLtMatrixLayoutInit(&lw, CUDA_R_16BF, p.n_in, p.n_out, p.n_in));
    CHECK(cublasLtMatrixLayoutInit(&lx, CUDA_R_16BF, p.n_in, p.rows, p.n_in));
    CHECK(cublasLtMatrixLayoutInit(&ly, p.type, p.n_out, p.rows, p.n_out));
    CHECK(cublasLtMatmulPreferenceInit(&preference));
    constexpr int MOST = 8;
    cublasLtMatmulHeuristicResult_t kernels[MOST];
    int n = 0;
    CHECK(cublasLtMatmulAlgoGetHeuristic(handle, &product, &lw, &lx, &ly, &ly, &preference, MOST, kernels, &n));

    const double flop = 2.0*p.n_in*p.n_out*p.rows;
    const int    each = std::max(4, (int) (12e-3*700e12/flop));
    cudaEvent_t start, end;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&end));
    const auto run = [&](const int kernel, const int times) {
        const float one = 1.0f, zero = 0.0f;
        for (int i = 0; i < times; i++) {
            CHECK(cublasLtMatmul(handle, &product, &one, w, &lw, x, &lx, &zero, y, &ly, y, &ly, &kernels[kernel].algo, nullptr, 0, 0));
        }
    };
    run(0, 4*each);
    constexpr int ROUNDS = 9;
    std::vector<std::vector<double>> rates(n);
    std::vector<int> order(n);
    for (int i = 0; i < n; i++) {
        order[i] = i;
    }
    std::mt19937 random(1);
    for (int round = 0; round < ROUNDS; round++) {
        std::shuffle(order.begin(), order.end(), random);
        for (const int kernel : order) {
            run(kernel, 2);
            CHECK(cudaEventRecord(start));
            run(kernel, each);
            CHECK(cudaEventRecord(end));
            CHECK(cudaEventSynchronize(end));
            float ms;
            CHECK(cudaEventElapsedTime(&ms, start, end));
            rates[kernel].push_back(flop*each/ms*1e-9);
        }
    }
    std::printf("%lld -> %lld, %lld rows, %s:", (long long) p.n_in, (long long) p.n_out, (long long) p.rows, p.type == CUDA_R_32F ? "F32" : "BF16");
    for (int i = 0; i < n; i++) {
        std::nth_element(rates[i].begin(), rates[i].begin() + ROUNDS/2, rates[i].end());
        uint32_t tile = 0;
        uint16_t cluster = 0;
        CHECK(cublasLtMatmulAlgoConfigGetAttribute(&kernels[i].algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof(tile), nullptr));
        CHECK(cublasLtMatmulAlgoConfigGetAttribute(&kernels[i].algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &cluster, sizeof(cluster), nullptr));
        const char * side = cluster == CUBLASLT_CLUSTER_SHAPE_1x2x1 ? "1x2" : cluster == CUBLASLT_CLUSTER_SHAPE_2x1x1 ? "2x1" : "other";
        const char * known = name(tile);
        known != nullptr ? std::printf(" %s/%s", known, side) : std::printf(" tile %u/%s", tile, side);
        std::printf(" %.0f,", rates[i][ROUNDS/2]);
    }
    std::printf("\n");
    std::fflush(stdout);
}

} // namespace

int main() {
    constexpr int64_t N_EMBD = 4096, N_FF = 14336, MOST_ROWS = 9216;
    cublasLtHandle_t handle;
    CHECK(cublasLtCreate(&handle));
    bf16 * w, * x;
    void * y;
    CHECK(cudaMalloc(&w, N_EMBD*N_FF*sizeof(bf16)));
    CHECK(cudaMalloc(&x, MOST_ROWS*N_FF*sizeof(bf16)));
    CHECK(cudaMalloc(&y, MOST_ROWS*N_FF*sizeof(float)));
    fill<<<1024, 256>>>(w, N_EMBD*N_FF, 1);
    fill<<<1024, 256>>>(x, MOST_ROWS*N_FF, 2);
    CHECK(cudaDeviceSynchronize());
    for (const int64_t rows : {9216, 8192, 7168, 6144, 4096, 3072, 2048, 1024}) {
        time_kernels(handle, w, x, y, {N_EMBD, N_FF, rows, CUDA_R_16BF});
        time_kernels(handle, w, x, y, {N_FF, N_EMBD, rows, CUDA_R_16BF});
        time_kernels(handle, w, x, y, {N_EMBD, N_EMBD, rows, CUDA_R_32F});
    }
}
