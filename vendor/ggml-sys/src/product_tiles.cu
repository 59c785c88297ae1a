#include "product_tiles.h"

#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

// On a Hopper GPU cuBLAS' first choice for many products are tiles of 192x192. Long prompts run at the card's power limit, where
// smaller tiles, which it ranks lower, are up to a tenth faster: tests/product_tiles_check.cu measures it. Its other first choices
// are as good as any.

#if CUBLAS_VER_MAJOR >= 13 // whose headers name these tiles

namespace {

constexpr cublasLtMatmulTile_t UNWANTED = CUBLASLT_MATMUL_TILE_192x192;
constexpr cublasLtMatmulTile_t BETTER[] = {CUBLASLT_MATMUL_TILE_176x128, CUBLASLT_MATMUL_TILE_168x128};

constexpr int64_t MOST_IN   = 5120; // products of longer rows are better off in 192x192,
constexpr int64_t LEAST_OUT = 2048; // and narrow ones in whatever cuBLAS says

using Candidate = cublasLtMatmulHeuristicResult_t;

template <typename Value> Value config(const Candidate & candidate, const cublasLtMatmulAlgoConfigAttributes_t what) {
    Value value{};
    CUBLAS_CHECK(cublasLtMatmulAlgoConfigGetAttribute(&candidate.algo, what, &value, sizeof(value), nullptr));
    return value;
}

bool is_in(const cublasLtMatmulTile_t tile, const Candidate & candidate) {
    return config<uint32_t>(candidate, CUBLASLT_ALGO_CONFIG_TILE_ID) == tile;
}

// A product's descriptors, and the kernel for it, if there is a better one than cuBLAS' own choice.
struct Plan {
    cublasLtMatmulDescOpaque_t   product;
    cublasLtMatrixLayoutOpaque_t w, x, y;
    cublasLtMatmulAlgo_t         algo;
    bool                         found = false;

    Plan(const cublasLtHandle_t handle, const ProductShape & s) {
        const cublasOperation_t transposed = CUBLAS_OP_T;
        cublasLtMatmulPreferenceOpaque_t preference; // no workspace
        CUBLAS_CHECK(cublasLtMatmulDescInit(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
        CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
        CUBLAS_CHECK(cublasLtMatrixLayoutInit(&w, CUDA_R_16BF, s.n_in, s.n_out, s.n_in));
        CUBLAS_CHECK(cublasLtMatrixLayoutInit(&x, CUDA_R_16BF, s.n_in, s.rows, s.x_stride));
        CUBLAS_CHECK(cublasLtMatrixLayoutInit(&y, s.type, s.n_out, s.rows, s.n_out));
        CUBLAS_CHECK(cublasLtMatmulPreferenceInit(&preference));

        constexpr int MOST = 8;
        Candidate all[MOST]; // the first is what cuBLAS would take
        int n = 0;
        const auto status = cublasLtMatmulAlgoGetHeuristic(handle, &product, &w, &x, &y, &y, &preference, MOST, all, &n);
        if (status != CUBLAS_STATUS_SUCCESS || n == 0 || !is_in(UNWANTED, all[0])) {
            return;
        }
        for (const cublasLtMatmulTile_t tile : BETTER) {
            const auto better = std::find_if(all, all + n, [&](const Candidate & c) {
                return c.state == CUBLAS_STATUS_SUCCESS && c.workspaceSize == 0 && is_in(tile, c) &&
                    config<uint16_t>(c, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID) == CUBLASLT_CLUSTER_SHAPE_1x2x1;
            });
            if (better != all + n) {
                algo  = better->algo;
                found = true;
                return;
            }
        }
    }
};

Plan plan_of(ggml_backend_cuda_context & ctx, const cublasLtHandle_t handle, const ProductShape & s) {
    using Key = std::tuple<int, int64_t, int64_t, int64_t, int64_t, cudaDataType_t, bool>;
    constexpr size_t MOST = 1024; // a process that reads prompts of ever new lengths starts anew now and then
    static std::mutex          mutex;
    static std::map<Key, Plan> plans;
    const Key key(ctx.device, s.n_in, s.n_out, s.rows, s.x_stride, s.type, s.adds);
    const std::lock_guard lock(mutex);
    auto found = plans.find(key);
    if (found == plans.end()) {
        if (plans.size() == MOST) {
            plans.clear();
        }
        found = plans.emplace(key, Plan(handle, s)).first;
    }
    return found->second;
}

} // namespace

bool multiply_in_tiles(ggml_backend_cuda_context & ctx, const nv_bfloat16 * w, const nv_bfloat16 * x, void * y, const ProductShape & s) {
    if (ggml_cuda_info().devices[ctx.device].cc != GGML_CUDA_CC_HOPPER || s.n_in > MOST_IN || s.n_out < LEAST_OUT) {
        return false;
    }
    const auto handle = (cublasLtHandle_t) ctx.cublas_handle(); // a handle of cuBLAS is one of cuBLASLt, too
    Plan plan = plan_of(ctx, handle, s);
    if (!plan.found) {
        return false;
    }
    const float one = 1.0f, before = s.adds ? 1.0f : 0.0f;
    CUBLAS_CHECK(cublasLtMatmul(handle, &plan.product, &one, w, &plan.w, x, &plan.x, &before, y, &plan.y, y, &plan.y,
        &plan.algo, nullptr, 0, ctx.stream()));
    return true;
}

#else

bool multiply_in_tiles(ggml_backend_cuda_context &, const nv_bfloat16 *, const nv_bfloat16 *, void *, const ProductShape &) {
    return false;
}

#endif
