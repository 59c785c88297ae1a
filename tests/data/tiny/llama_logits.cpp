// Prints the logits that llama.cpp gives for a list of tokens, as one JSON object. See README.md for how to build it.
//
//     llama_logits MODEL.gguf N_CTX POSITION[,POSITION..] TOKEN[,TOKEN..]
//
// F32 KV cache, no flash attention, two CPU threads, one batch.

#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

static std::vector<int> numbers(const char * text) {
    std::vector<int> out;
    std::stringstream stream(text);
    for (std::string item; std::getline(stream, item, ',');) {
        out.push_back(std::stoi(item));
    }
    return out;
}

static void print_list(const char * name, const std::vector<int> & list) {
    printf("\"%s\": [", name);
    for (size_t i = 0; i < list.size(); i++) {
        printf("%s%d", i ? ", " : "", list[i]);
    }
    printf("],\n");
}

int main(int argc, char ** argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: %s MODEL.gguf N_CTX POSITIONS TOKENS\n", argv[0]);
        return 2;
    }
    const int n_ctx = std::atoi(argv[2]);
    const std::vector<int> positions = numbers(argv[3]);
    const std::vector<int> tokens = numbers(argv[4]);
    const int n = (int) tokens.size();

    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) {
            fputs(text, stderr);
        }
    }, nullptr);
    llama_backend_init();
    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(argv[1], mparams);
    if (!model) {
        return 1;
    }
    llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx = n_ctx;
    cparams.n_batch = n;
    cparams.n_ubatch = n;
    cparams.n_threads = 2;
    cparams.n_threads_batch = 2;
    cparams.type_k = GGML_TYPE_F32;
    cparams.type_v = GGML_TYPE_F32;
    cparams.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * ctx = llama_init_from_model(model, cparams);
    if (!ctx) {
        return 1;
    }

    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    if (llama_decode(ctx, batch) != 0) {
        return 1;
    }

    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    printf("{\n\"n_ctx\": %d,\n", n_ctx);
    print_list("tokens", tokens);
    print_list("positions", positions);
    printf("\"logits\": [\n");
    for (size_t i = 0; i < positions.size(); i++) {
        const float * logits = llama_get_logits_ith(ctx, positions[i]);
        printf("[");
        for (int v = 0; v < n_vocab; v++) {
            printf("%s%.7g", v ? ", " : "", logits[v]);
        }
        printf("]%s\n", i + 1 < positions.size() ? "," : "");
    }
    printf("]\n}\n");

    llama_batch_free(batch);
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
