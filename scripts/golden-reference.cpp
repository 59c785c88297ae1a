// What llama.cpp makes of a prompt, for tests/golden.rs: golden-reference.py runs it and tells how to compile it.
//
//   golden-reference MODEL.gguf N_UBATCH N_STEPS N_THREADS < token ids
//
// Weights as the file has them, flash attention, F16 cache. Prints the greedy continuation: per step the token and the ten
// most likely with their log probabilities.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <numeric>
#include <vector>

#include "llama.h"

static void fail(const char * what) {
    fprintf(stderr, "golden-reference: %s\n", what);
    exit(1);
}

static llama_token print_step(const float * logits, int n_vocab) {
    const double max = *std::max_element(logits, logits + n_vocab);
    const double sum = std::accumulate(logits, logits + n_vocab, 0.0, [&](double s, float x) { return s + exp(x - max); });
    std::vector<llama_token> ids(n_vocab);
    std::iota(ids.begin(), ids.end(), 0);
    std::partial_sort(ids.begin(), ids.begin() + 10, ids.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    printf("{\"id\":%d,\"top\":[", ids[0]);
    for (int i = 0; i < 10; i++) {
        printf("%s[%d,%.5f]", i ? "," : "", ids[i], logits[ids[i]] - max - log(sum));
    }
    printf("]}");
    return ids[0];
}

int main(int argc, char ** argv) {
    if (argc != 5) {
        fail("usage: golden-reference MODEL.gguf N_UBATCH N_STEPS N_THREADS < token ids");
    }
    const int n_steps = atoi(argv[3]);
    std::vector<llama_token> prompt{std::istream_iterator<llama_token>(std::cin), {}};
    if (prompt.empty()) {
        fail("no token ids on standard input");
    }
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) {
            fputs(text, stderr);
        }
    }, nullptr);

    llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts = false;
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    if (!model) {
        fail("no model");
    }
    llama_context_params params = llama_context_default_params();
    params.n_batch = params.n_ubatch = atoi(argv[2]);
    params.n_ctx = prompt.size() + n_steps;
    params.n_threads = params.n_threads_batch = atoi(argv[4]);
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) {
        fail("no context");
    }
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));

    for (size_t at = 0; at < prompt.size(); at += params.n_batch) {
        const int n = std::min<size_t>(params.n_batch, prompt.size() - at);
        if (llama_decode(ctx, llama_batch_get_one(prompt.data() + at, n))) {
            fail("decode");
        }
    }
    for (int step = 0; step < n_steps; step++) {
        printf(step ? "," : "[");
        llama_token token = print_step(llama_get_logits_ith(ctx, -1), n_vocab);
        if (step + 1 < n_steps && llama_decode(ctx, llama_batch_get_one(&token, 1))) {
            fail("decode");
        }
    }
    printf("]\n");
    llama_free(ctx);
    llama_model_free(model);
}
