#include "attention.h"
#include "hopper_attention.h"
#include "spts_ops.h"

namespace {

hopper_attention_args arguments(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];
    hopper_attention_args args = {};
    args.q             = (const float *) q->data;
    args.k             = (const half *) k->data;
    args.v             = (const half *) v->data;
    args.out           = dst->data;
    args.n_q           = q->ne[1];
    args.n_kv          = k->ne[1];
    args.n_head        = q->ne[2];
    args.n_head_kv     = k->ne[2];
    args.head_dim      = q->ne[0];
    args.q_row_stride  = q->nb[1] / sizeof(float);
    args.q_head_stride = q->nb[2] / sizeof(float);
    args.k_row_stride  = k->nb[1] / sizeof(half);
    args.k_head_stride = k->nb[2] / sizeof(half);
    args.v_row_stride  = v->nb[1] / sizeof(half);
    args.v_head_stride = v->nb[2] / sizeof(half);
    args.out_row_stride  = dst->nb[2] / dst->nb[0];
    args.out_head_stride = dst->nb[1] / dst->nb[0];
    args.out_is_bf16     = dst->type == GGML_TYPE_BF16;
    args.first = spts_argument(dst, 1);
    args.scale = spts_float_argument(dst, 2);
    if (const ggml_tensor * lists = dst->src[3]) {
        args.lists       = (const int32_t *) lists->data;
        args.list_stride = lists->nb[1] / lists->nb[0];
    }
    return args;
}

} // namespace

// Whether attention of so many queries over heads of this size in an F16 cache should run on this device as
// SPTS_CAUSAL_ATTENTION. Our kernel gives 128 queries of a head to a multiprocessor: with few of them most would idle, and
// ggml's kernel divides the keys, too.
extern "C" bool spts_cuda_takes_causal_attention(const int32_t device, const int32_t n_q, const int32_t head_dim, const int32_t n_head, const int32_t n_head_kv) {
    const auto & info = ggml_cuda_info().devices[device];
    if ((int64_t) n_q*n_head < (int64_t) 64*info.nsm) {
        return false;
    }
    hopper_attention_args args = {};
    args.n_q = args.n_kv = n_q;
    args.n_head        = n_head;
    args.n_head_kv     = n_head_kv;
    args.head_dim      = head_dim;
    args.q_row_stride  = args.out_row_stride = (size_t) n_head * head_dim;
    args.k_row_stride  = args.v_row_stride = (size_t) n_head_kv * head_dim;
    args.q_head_stride = args.k_head_stride = args.v_head_stride = args.out_head_stride = head_dim;
    return hopper_attention_supported(args, info.cc);
}

void causal_attention(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    ggml_cuda_set_device(ctx.device);
    CUDA_CHECK(hopper_attention(arguments(dst), ctx.stream()));
}
