// Which kernel multiplies by a quantized matrix: our answer in place of ggml's.
//
// ggml has integer kernels (MMQ) for products of many rows by a quantized matrix. The build script compiles mmq.cu with
// ggml_cuda_should_use_mmq and ggml_cuda_mul_mat_q changed to ..._upstream, and this file defines the names that the rest
// calls: all such products come here, and are sent on by their rows.
//
// Few rows want MMQ. Where 16-bit tensor cores reach their peak only through cuBLAS (the data-centre chips), many rows are
// 3-4 times faster there, on weights dequantized to bf16 for the occasion. On the other chips, whose INT8 rate is twice or
// four times that of F16 with F32 sums, MMQ takes them all unless a limit is set.

#include "common.cuh"
#include "mmq.cuh"
#include "products.h"
#include "spts_ops.h"

#include <atomic>
#include <cstdint>

bool ggml_cuda_should_use_mmq_upstream(enum ggml_type type, int cc, int64_t ne11, int64_t n_experts);

void ggml_cuda_mul_mat_q_upstream(ggml_backend_cuda_context & ctx, const ggml_tensor * src0, const ggml_tensor * src1,
                                  const ggml_tensor * ids, ggml_tensor * dst);

namespace {

// Measured on an H100: MMQ wins below about 300 rows, cuBLAS at 512.
constexpr int64_t DATA_CENTRE_ROWS = 256;
constexpr int64_t NO_LIMIT         = INT64_MAX;

// Negative: the device decides.
std::atomic<int64_t> limit_for_all{-1};

int64_t default_limit(const int cc) {
    switch (cc) {
        case  800: // A100
        case  900: // H100, H200
        case 1000: // B200
        case 1030: // B300
            return DATA_CENTRE_ROWS;
        default:
            return NO_LIMIT;
    }
}

} // namespace

// Products of more than `rows` rows leave MMQ, on all devices. Negative: each device's own default.
extern "C" void spts_cuda_set_mmq_max_rows(const int64_t rows) {
    limit_for_all.store(rows, std::memory_order_relaxed);
}

// The limit in force for a device of compute capability `cc` (900 for 9.0); INT64_MAX for none.
extern "C" int64_t spts_cuda_mmq_max_rows(const int32_t cc) {
    const int64_t limit = limit_for_all.load(std::memory_order_relaxed);
    return limit < 0 ? default_limit(cc) : limit;
}

// Whether a marked FFN (spts_ops.h) with weights of these types and so many rows can run on this device: its products
// would go to cuBLAS one by one.
extern "C" bool spts_cuda_takes_gated_ffn(const int32_t device, const int64_t rows, const int32_t gate, const int32_t up, const int32_t down) {
    const int cc = ggml_cuda_info().devices[device].cc;
    for (const int32_t type : {gate, up, down}) {
        if (!ggml_is_quantized((ggml_type) type) || !ggml_cuda_should_use_mmq_upstream((ggml_type) type, cc, rows, 0) ||
            ggml_get_to_bf16_cuda((ggml_type) type) == nullptr) {
            return false;
        }
    }
    return fast_bf16_hardware_available(cc) && rows > spts_cuda_mmq_max_rows(cc);
}

bool ggml_cuda_should_use_mmq(enum ggml_type type, int cc, int64_t ne11, int64_t n_experts) {
    return ggml_cuda_should_use_mmq_upstream(type, cc, ne11, n_experts);
}

void ggml_cuda_mul_mat_q(ggml_backend_cuda_context & ctx, const ggml_tensor * src0, const ggml_tensor * src1,
                         const ggml_tensor * ids, ggml_tensor * dst) {
    if (spts_marked(dst)) {
        gated_ffn(ctx, dst);
        return;
    }
    const int  cc     = ggml_cuda_info().devices[ctx.device].cc;
    const bool matrix = ids == nullptr && ggml_nrows(src1) == src1->ne[1] && ggml_is_contiguous(src0) &&
                        ggml_is_contiguous(src1) && ggml_is_contiguous(dst);
    if (matrix && src1->ne[1] > spts_cuda_mmq_max_rows(cc) && fast_bf16_hardware_available(cc) &&
        ggml_get_to_bf16_cuda(src0->type) != nullptr) {
        product(ctx, src0, src1, dst);
        return;
    }
    ggml_cuda_mul_mat_q_upstream(ctx, src0, src1, ids, dst);
}
