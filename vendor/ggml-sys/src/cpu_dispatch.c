// The functions of ggml-cpu.h in a portable build: each jumps to the variant that was chosen when the
// program started. build/portable.rs generates variants.h, with two lists:
//   VARIANTS(V)      V(name, supported) per variant, where `supported` is the operating system's part
//   FUNCTIONS(F, v)  F(v, function, slot) per function

#include <stdlib.h>
#include <string.h>

#include "variants.h"

typedef void (*function_t)(void);

#define DECLARE(variant, function, slot) extern void function##__##variant(void);
#define ADDRESS(variant, function, slot) function##__##variant,
#define TABLE(variant, supported)      \
    extern int ggml_score_##variant(void); \
    FUNCTIONS(DECLARE, variant)        \
    static const function_t table_##variant[] = { FUNCTIONS(ADDRESS, variant) };
VARIANTS(TABLE)

// Set once, before main.
__attribute__((visibility("hidden"))) function_t ggml_cpu_slots[sizeof(table_x64) / sizeof(table_x64[0])];

// Arguments and results pass through untouched, whatever their types.
#define JUMP(variant, function, slot)                                                        \
    __asm__(".text\n.globl " #function "\n.type " #function ",@function\n" #function ":\n"   \
            "jmp *ggml_cpu_slots+8*" #slot "(%rip)\n.size " #function ",.-" #function "\n");
FUNCTIONS(JUMP, )

static const char * chosen;

// The name of the variant in use.
const char * ggml_cpu_variant(void) {
    return chosen;
}

// The highest of ggml's scores; among equals the later; GGML_CPU_VARIANT before all if the machine can.
__attribute__((constructor(101))) static void choose(void) {
    const char * wanted = getenv("GGML_CPU_VARIANT");
    int best = 0;
    __builtin_cpu_init();
#define CONSIDER(variant, supported)                                      \
    {                                                                     \
        int score = (supported) ? ggml_score_##variant() : 0;             \
        if (score > 0 && wanted && strcmp(wanted, #variant) == 0) {       \
            score = 1 << 30;                                              \
        }                                                                 \
        if (score > 0 && score >= best) {                                 \
            best   = score;                                               \
            chosen = #variant;                                            \
            memcpy(ggml_cpu_slots, table_##variant, sizeof(ggml_cpu_slots)); \
        }                                                                 \
    }
    VARIANTS(CONSIDER)
}
