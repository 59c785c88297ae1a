// The driver and cuBLAS, found when the program runs.
//
// A program linked against libcuda or libcublas does not even start where one is missing. ggml's calls
// land here instead; the libraries are opened at the first of them. So one program serves machines with
// and without a GPU, and can say what is missing. All names here are hidden (-fvisibility): they never stand in for the
// real ones in other libraries of the process.

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdlib>
#include <string>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

namespace {

void * open_driver() {
    static void * const handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return handle;
}

// The folder of this program, with a slash; empty if it cannot be told.
std::string program_dir() {
    Dl_info info;
    if (dladdr((void *) &program_dir, &info) == 0 || info.dli_fname == nullptr) {
        return "";
    }
    char * full = realpath(info.dli_fname, nullptr);
    std::string path = full != nullptr ? full : "";
    free(full);
    return path.substr(0, path.rfind('/') + 1);
}

// cuBLAS of the major version that this was compiled with: beside the program, where the loader looks,
// in the toolkit that compiled this. Its helper cublasLt comes first, so that it is found as well.
struct Cublas {
    void * blas = nullptr;
    void * lt   = nullptr;
};

const Cublas & cublas() {
    static const Cublas handles = [] {
        const std::string version = "." TEXT(CUBLAS_VER_MAJOR);
        for (const std::string & dir : {program_dir(), std::string(), std::string(SPTS_CUDA_LIBRARY_DIR "/")}) {
            void * lt = dlopen((dir + "libcublasLt.so" + version).c_str(), RTLD_NOW | RTLD_GLOBAL);
            if (void * blas = dlopen((dir + "libcublas.so" + version).c_str(), RTLD_NOW | RTLD_LOCAL)) {
                // cuBLAS may have found its helper elsewhere.
                return Cublas{blas, lt != nullptr ? lt : dlopen(("libcublasLt.so" + version).c_str(), RTLD_NOW | RTLD_LOCAL)};
            }
        }
        return Cublas{};
    }();
    return handles;
}

void * open_cublas() {
    return cublas().blas;
}

void * open_cublas_lt() {
    return cublas().lt;
}

template <typename Function> Function lookup(void * library, const char * name) {
    return library != nullptr ? (Function) dlsym(library, name) : (Function) nullptr;
}

} // namespace

// Why CUDA cannot be used here, in one line, or null if its libraries are present.
extern "C" const char * spts_cuda_missing() {
    if (open_driver() == nullptr) {
        return "the NVIDIA driver's library libcuda.so.1 was not found";
    }
    if (open_cublas() == nullptr) {
        return "NVIDIA's library libcublas.so." TEXT(CUBLAS_VER_MAJOR)
               " was not found beside the program, in the library path or in the CUDA toolkit of the build";
    }
    return nullptr;
}

// Programmatic dependent launch, by which kernels begin before those in front of them end: off, unless the user has set
// GGML_CUDA_PDL or spts_cuda_overlap_launches is called. Seen on an H100 with ggml 0.26: in captured graphs with its NeoX rope
// kernel some tokens came out wrong, differently each time; without it, or without captured graphs, never.
//
// ggml reads the variable when it launches a kernel of a kind for the first time. Others may read theirs at any time, so the
// environment must not change once there are threads. It gets this entry when the program is loaded, before there are any;
// later on one character of it changes, in its place.
namespace {

char       pdl_entry[] = "GGML_CUDA_PDL=0";
char &     pdl_value   = pdl_entry[sizeof(pdl_entry) - 2];
const bool is_pdl_ours = std::getenv("GGML_CUDA_PDL") == nullptr && putenv(pdl_entry) == 0;

} // namespace

// Holds for the whole process, and only before anything is computed. What the user has set stays.
extern "C" void spts_cuda_overlap_launches(const bool overlap) {
    if (is_pdl_ours) {
        __atomic_store_n(&pdl_value, overlap ? '1' : '0', __ATOMIC_RELAXED);
    }
}

// The headers give some functions another name by a macro (cublasCreate is cublasCreate_v2): TEXT expands it.
#define FORWARD(result, missing, library, name, params, args)                              \
    extern "C" result name params {                                                        \
        typedef result(*function_t) params;                                                \
        static const auto function = lookup<function_t>(library(), TEXT(name));            \
        return function != nullptr ? function args : (missing);                            \
    }

#define DRIVER(name, params, args) FORWARD(CUresult, CUDA_ERROR_NOT_INITIALIZED, open_driver, name, params, args)

DRIVER(cuDeviceGet, (CUdevice * a, int b), (a, b))
DRIVER(cuDeviceGetAttribute, (int * a, CUdevice_attribute b, CUdevice c), (a, b, c))
DRIVER(cuGetErrorString, (CUresult a, const char ** b), (a, b))
DRIVER(cuMemAddressFree, (CUdeviceptr a, size_t b), (a, b))
DRIVER(cuMemAddressReserve, (CUdeviceptr * a, size_t b, size_t c, CUdeviceptr d, unsigned long long e), (a, b, c, d, e))
DRIVER(cuMemCreate, (CUmemGenericAllocationHandle * a, size_t b, const CUmemAllocationProp * c, unsigned long long d), (a, b, c, d))
DRIVER(cuMemGetAllocationGranularity, (size_t * a, const CUmemAllocationProp * b, CUmemAllocationGranularity_flags c), (a, b, c))
DRIVER(cuMemMap, (CUdeviceptr a, size_t b, size_t c, CUmemGenericAllocationHandle d, unsigned long long e), (a, b, c, d, e))
DRIVER(cuMemRelease, (CUmemGenericAllocationHandle a), (a))
DRIVER(cuMemSetAccess, (CUdeviceptr a, size_t b, const CUmemAccessDesc * c, size_t d), (a, b, c, d))
DRIVER(cuMemUnmap, (CUdeviceptr a, size_t b), (a, b))

#define CUBLAS(name, params, args) FORWARD(cublasStatus_t, CUBLAS_STATUS_NOT_INITIALIZED, open_cublas, name, params, args)

FORWARD(const char *, "cuBLAS is missing", open_cublas, cublasGetStatusString, (cublasStatus_t a), (a))
CUBLAS(cublasCreate, (cublasHandle_t * a), (a))
CUBLAS(cublasDestroy, (cublasHandle_t a), (a))
CUBLAS(cublasSetStream, (cublasHandle_t a, cudaStream_t b), (a, b))
CUBLAS(cublasSetMathMode, (cublasHandle_t a, cublasMath_t b), (a, b))
CUBLAS(cublasSetWorkspace, (cublasHandle_t a, void * b, size_t c), (a, b, c))
CUBLAS(cublasLoggerConfigure, (int a, int b, int c, const char * d), (a, b, c, d))
CUBLAS(cublasSgemm,
    (cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const float * alpha,
     const float * A, int lda, const float * B, int ldb, const float * beta, float * C, int ldc),
    (h, ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc))
CUBLAS(cublasSgemmBatched,
    (cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const float * alpha,
     const float * const * A, int lda, const float * const * B, int ldb, const float * beta, float * const * C,
     int ldc, int count),
    (h, ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc, count))
CUBLAS(cublasSgemmStridedBatched,
    (cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const float * alpha,
     const float * A, int lda, long long sa, const float * B, int ldb, long long sb, const float * beta, float * C,
     int ldc, long long sc, int count),
    (h, ta, tb, m, n, k, alpha, A, lda, sa, B, ldb, sb, beta, C, ldc, sc, count))
CUBLAS(cublasStrsmBatched,
    (cublasHandle_t h, cublasSideMode_t side, cublasFillMode_t fill, cublasOperation_t ta, cublasDiagType_t diag,
     int m, int n, const float * alpha, const float * const * A, int lda, float * const * B, int ldb, int count),
    (h, side, fill, ta, diag, m, n, alpha, A, lda, B, ldb, count))
CUBLAS(cublasGemmEx,
    (cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void * alpha,
     const void * A, cudaDataType type_a, int lda, const void * B, cudaDataType type_b, int ldb, const void * beta,
     void * C, cudaDataType type_c, int ldc, cublasComputeType_t compute, cublasGemmAlgo_t algo),
    (h, ta, tb, m, n, k, alpha, A, type_a, lda, B, type_b, ldb, beta, C, type_c, ldc, compute, algo))
CUBLAS(cublasGemmBatchedEx,
    (cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void * alpha,
     const void * const * A, cudaDataType type_a, int lda, const void * const * B, cudaDataType type_b, int ldb,
     const void * beta, void * const * C, cudaDataType type_c, int ldc, int count, cublasComputeType_t compute,
     cublasGemmAlgo_t algo),
    (h, ta, tb, m, n, k, alpha, A, type_a, lda, B, type_b, ldb, beta, C, type_c, ldc, count, compute, algo))
CUBLAS(cublasGemmStridedBatchedEx,
    (cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void * alpha,
     const void * A, cudaDataType type_a, int lda, long long sa, const void * B, cudaDataType type_b, int ldb,
     long long sb, const void * beta, void * C, cudaDataType type_c, int ldc, long long sc, int count,
     cublasComputeType_t compute, cublasGemmAlgo_t algo),
    (h, ta, tb, m, n, k, alpha, A, type_a, lda, sa, B, type_b, ldb, sb, beta, C, type_c, ldc, sc, count, compute, algo))

#define CUBLAS_LT(name, params, args) FORWARD(cublasStatus_t, CUBLAS_STATUS_NOT_INITIALIZED, open_cublas_lt, name, params, args)

CUBLAS_LT(cublasLtMatmulDescInit_internal,
    (cublasLtMatmulDesc_t a, size_t b, cublasComputeType_t c, cudaDataType_t d), (a, b, c, d))
CUBLAS_LT(cublasLtMatmulDescSetAttribute,
    (cublasLtMatmulDesc_t a, cublasLtMatmulDescAttributes_t b, const void * c, size_t d), (a, b, c, d))
CUBLAS_LT(cublasLtMatrixLayoutInit_internal,
    (cublasLtMatrixLayout_t a, size_t b, cudaDataType c, uint64_t d, uint64_t e, int64_t f), (a, b, c, d, e, f))
CUBLAS_LT(cublasLtMatmulPreferenceInit_internal, (cublasLtMatmulPreference_t a, size_t b), (a, b))
CUBLAS_LT(cublasLtMatmulPreferenceSetAttribute,
    (cublasLtMatmulPreference_t a, cublasLtMatmulPreferenceAttributes_t b, const void * c, size_t d), (a, b, c, d))
CUBLAS_LT(cublasLtMatmulAlgoGetHeuristic,
    (cublasLtHandle_t h, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t A, cublasLtMatrixLayout_t B,
     cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D, cublasLtMatmulPreference_t wanted, int most,
     cublasLtMatmulHeuristicResult_t results[], int * n),
    (h, product, A, B, C, D, wanted, most, results, n))
CUBLAS_LT(cublasLtMatmulAlgoConfigGetAttribute,
    (const cublasLtMatmulAlgo_t * a, cublasLtMatmulAlgoConfigAttributes_t b, void * c, size_t d, size_t * e), (a, b, c, d, e))
CUBLAS_LT(cublasLtMatmul,
    (cublasLtHandle_t h, cublasLtMatmulDesc_t product, const void * alpha, const void * A, cublasLtMatrixLayout_t a,
     const void * B, cublasLtMatrixLayout_t b, const void * beta, const void * C, cublasLtMatrixLayout_t c, void * D,
     cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t * algo, void * workspace, size_t bytes, cudaStream_t stream),
    (h, product, alpha, A, a, B, b, beta, C, c, D, d, algo, workspace, bytes, stream))
