// Which kernel computes attention: our answer in place of ggml's.
//
// The build script compiles fattn.cu with ggml_cuda_flash_attn_ext changed to ggml_cuda_flash_attn_ext_upstream, and this
// file defines the name that the rest calls.

#include "common.cuh"

void ggml_cuda_flash_attn_ext_upstream(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

void ggml_cuda_flash_attn_ext(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    ggml_cuda_flash_attn_ext_upstream(ctx, dst);
}
