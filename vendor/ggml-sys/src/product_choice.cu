// Which kernel multiplies by a quantized matrix: our answer in place of ggml's.
//
// ggml asks ggml_cuda_should_use_mmq whether its integer kernels (MMQ) take a product; "no" sends the
// product to cuBLAS, which gets the weights as 16-bit numbers. The build script compiles mmq.cu with that
// name changed to ggml_cuda_should_use_mmq_upstream, and this file defines the name that the rest calls.
//
// Few rows want MMQ. Where 16-bit tensor cores reach their peak only through cuBLAS (the data-centre
// chips), many rows are 3-4 times faster with cuBLAS. On the other chips, whose INT8 rate is twice or four
// times that of F16 with F32 sums, ggml's own choice stands unless a limit is set.

#include "common.cuh"
#include "mmq.cuh"

#include <atomic>
#include <cstdint>

bool ggml_cuda_should_use_mmq_upstream(enum ggml_type type, int cc, int64_t ne11, int64_t n_experts);

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

bool ggml_cuda_should_use_mmq(enum ggml_type type, int cc, int64_t ne11, int64_t n_experts) {
    // A mixture of experts is left alone: without MMQ, ggml sorts its rows on the host.
    if (n_experts == 0 && GGML_CUDA_CC_IS_NVIDIA(cc) && ne11 > spts_cuda_mmq_max_rows(cc)) {
        return false;
    }
    return ggml_cuda_should_use_mmq_upstream(type, cc, ne11, n_experts);
}
