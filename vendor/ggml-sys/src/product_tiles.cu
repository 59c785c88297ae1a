#include "product_tiles.h"

#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

// On a Hopper GPU cuBLAS' first choice for many products are tiles of 192x192. Long prompts run at the card's power limit, where
// smaller tiles, which it ranks lower, are up to a tenth faster: tests/product_tiles_check.cu measures it. Other tiles in place of
// its other first choices gained nothing within a prompt.

#if CUBLAS_VER_MAJOR >= 13 // whose headers name these tiles

namespace {

constexpr cublasLtMatmulTile_t UNWANTED = CUBLASLT_MATMUL_TILE_192x192;
constexpr cublasLtMatmulTile_t BETTER[] = {CUBLASLT_MATMUL_TILE_176x128, CUBLASLT_MATMUL_TILE_168x128};

constexpr int64_t MOST_IN   = 5120; // products of longer rows are better off in 192x192,
constexpr int64_t LEAST_OUT = 2048; // and narrow ones in whatever cuBLAS says

using Candidate = cublasLtMatmulHeuristicResult_t;

// 0, which no tile or cluster has, if it is not known.
template <typename Value> Value config(const Candidate & candidate, const cublasLtMatmulAlgoConfigAttributes_t what) {
    Value value{};
    (void) cublasLtMatmulAlgoConfigGetAttribute(&candidate.algo, what, &value, sizeof(value), nullptr);
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
        constexpr int MOST = 8;
        Candidate all[MOST]; // the first is what cuBLAS would take without a workspace
        const int n = candidates(handle, s, all, MOST);
        if (n == 0 || !is_in(UNWANTED, all[0])) {
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

    // Fills the descriptors, and in the order of cuBLAS the kernels for them; returns how many. None if it refuses.
    int candidates(const cublasLtHandle_t handle, const ProductShape & s, Candidate * all, const int most) {
        const cublasOperation_t transposed = CUBLAS_OP_T;
        const uint32_t          alignment  = 16; // of any row of a matrix whose width is a multiple of 8
        cublasLtMatmulPreferenceOpaque_t preference;
        int n = 0;
        cublasStatus_t status = cublasLtMatmulDescInit(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
        const auto then = [&](const auto & call) { status = status == CUBLAS_STATUS_SUCCESS ? call() : status; };
        then([&] { return cublasLtMatmulDescSetAttribute(&product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)); });
        then([&] { return cublasLtMatrixLayoutInit(&w, CUDA_R_16BF, s.n_in, s.n_out, s.n_in); });
        then([&] { return cublasLtMatrixLayoutInit(&x, CUDA_R_16BF, s.n_in, s.rows, s.x_stride); });
        then([&] { return cublasLtMatrixLayoutInit(&y, s.type, s.n_out, s.rows, s.n_out); });
        then([&] { return cublasLtMatmulPreferenceInit(&preference); });
        for (const auto of : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                              CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
            then([&] { return cublasLtMatmulPreferenceSetAttribute(&preference, of, &alignment, sizeof(alignment)); });
        }
        then([&] { return cublasLtMatmulAlgoGetHeuristic(handle, &product, &w, &x, &y, &y, &preference, most, all, &n); });
        return status == CUBLAS_STATUS_SUCCESS ? n : 0;
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
    // Rows that do not begin at multiples of 16 bytes are left to cuBLAS.
    if (s.n_in % 8 != 0 || s.n_out % 8 != 0 || s.x_stride % 8 != 0) {
        return false;
    }
    const auto handle = (cublasLtHandle_t) ctx.cublas_handle(); // a handle of cuBLAS is one of cuBLASLt, too
    Plan plan = plan_of(ctx, handle, s);
    if (!plan.found) {
        return false;
    }
    const float one = 1.0f, before = s.adds ? 1.0f : 0.0f;
    return cublasLtMatmul(handle, &plan.product, &one, w, &plan.w, x, &plan.x, &before, y, &plan.y, y, &plan.y,
        &plan.algo, nullptr, 0, ctx.stream()) == CUBLAS_STATUS_SUCCESS;
}

#else

bool multiply_in_tiles(ggml_backend_cuda_context &, const nv_bfloat16 *, const nv_bfloat16 *, void *, const ProductShape &) {
    return false;
}

#endif
