// Computes the operations of spts_ops.h.
//
// The build script compiles tsembd.cu with ggml_cuda_op_timestep_embedding changed to ..._upstream, and this file defines the
// name that the rest calls.

#include "attention.h"
#include "block_lists.h"
#include "common.cuh"
#include "products.h"
#include "rope.h"
#include "rows.h"
#include "selection.h"
#include "spts_ops.h"

void ggml_cuda_op_timestep_embedding(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    switch ((spts_op) spts_argument(dst, 0)) {
        case SPTS_CAUSAL_ATTENTION: return causal_attention(ctx, dst);
        case SPTS_BLOCK_LISTS:      return block_lists(ctx, dst);
        case SPTS_PRODUCT:          return product(ctx, dst);
        case SPTS_GATED_FFN:        return gated_ffn(ctx, dst);
        case SPTS_PROXY_NORM:       return proxy_norm(ctx, dst);
        case SPTS_RMS_NORM:         return rms_norm_16(ctx, dst);
        case SPTS_ROPE:             return rope(ctx, dst);
        case SPTS_SCATTER_ADD:      return scatter_add(ctx, dst);
        case SPTS_GATHER:           return gather(ctx, dst);
        case SPTS_STORE:            return store(ctx, dst);
        case SPTS_TOP_K:            return top_k(ctx, dst);
        case SPTS_IS_MEMBER:        return is_member(ctx, dst);
        case SPTS_PROBE_SCORES:     return probe_scores(ctx, dst);
        case SPTS_SCRATCH:          return;
    }
    GGML_ABORT("an operation of ggml's that no graph of ours holds");
}
