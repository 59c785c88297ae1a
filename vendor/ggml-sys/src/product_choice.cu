// Which products of many rows leave ggml's kernels for cuBLAS.
//
// ggml has integer kernels (MMQ) for products of many rows by a quantized matrix. Few rows want them. Where 16-bit tensor
// cores reach their peak only through cuBLAS (the data-centre chips), many rows are 3-4 times faster there, on weights
// dequantized to BF16 for the occasion. On the other chips, whose INT8 rate is twice or four times that of F16 with F32 sums,
// MMQ takes them all unless a limit is set.

#include "common.cuh"
#include "convert.cuh"

#include <atomic>
#include <cstdint>

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

// Whether a product of so many rows by a matrix of this type runs as SPTS_PRODUCT on this device. Weights in F16 and F32 stay
// with ggml, which multiplies them as they are.
extern "C" bool spts_cuda_takes_product(const int32_t device, const int64_t rows, const int32_t type) {
    const int  cc    = ggml_cuda_info().devices[device].cc;
    const bool known = type == GGML_TYPE_BF16 || (ggml_is_quantized((ggml_type) type) && ggml_get_to_bf16_cuda((ggml_type) type) != nullptr);
    return known && fast_bf16_hardware_available(cc) && rows > spts_cuda_mmq_max_rows(cc);
}
