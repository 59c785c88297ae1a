// How the threads of a pool wait for each other: they look for a while, then sleep until they are woken.
//
// Looking again and again is the fastest while every thread has a processor of its own. Beside other programs a thread that is
// waited for may have been sent off its processor, for milliseconds, and whoever looks then is in its way. So a thread looks for as
// long as that pays: a little longer next time where a wait ended in time, or soon after the thread had gone to sleep; hardly at
// all where it slept long.
//
// OMP_WAIT_POLICY, as in programs with OpenMP, sets one of both: `passive` sleeps at once, `active` never.

#include "wait.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// Looks at the word before a thread sleeps. A pause between two takes 10 to 50 ns: 0.2 ms at most.
#define MOST_LOOKS  4000
#define LEAST_LOOKS 64
// By so many more after a wait that ended in time.
#define LOOKS_GAINED 4
// A sleep that looking would have spared, what it takes to be woken included.
#define SHORT_SLEEP_NS 150000

struct ggml_threadpool;
void spts_cpu_barrier(struct ggml_threadpool * tp);

// In place of ggml's: see pool.c.
void ggml_barrier(struct ggml_threadpool * tp) {
    spts_cpu_barrier(tp);
}

enum policy { UNKNOWN, ADAPTIVE, PASSIVE, ACTIVE };

static enum policy wait_policy(void) {
    static atomic_int known = UNKNOWN;
    int policy = atomic_load_explicit(&known, memory_order_relaxed);
    if (policy == UNKNOWN) {
        const char * asked = getenv("OMP_WAIT_POLICY");
        policy = ADAPTIVE;
        if (asked && strcasecmp(asked, "passive") == 0) {
            policy = PASSIVE;
        } else if (asked && strcasecmp(asked, "active") == 0) {
            policy = ACTIVE;
        }
        atomic_store_explicit(&known, policy, memory_order_relaxed);
    }
    return (enum policy) policy;
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

static inline int unchanged(atomic_int * word, int value) {
    return (atomic_load_explicit(word, memory_order_relaxed) & ~SPTS_SLEEPERS) == value;
}

// Whether the word changes within so many looks at it.
static int look(atomic_int * word, int value, long looks) {
    for (long i = 0; i < looks; i++) {
        if (!unchanged(word, value)) {
            return 1;
        }
        relax();
    }
    return 0;
}

static void sleep_while(atomic_int * word, int value) {
    const int slept_on = value | SPTS_SLEEPERS;
    while (unchanged(word, value)) {
        int seen = value;
        // If the word changes now, either this fails or the change finds the bit.
        atomic_compare_exchange_strong_explicit(word, &seen, slept_on, memory_order_seq_cst, memory_order_relaxed);
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, slept_on, NULL, NULL, 0);
    }
}

void spts_wait_while(atomic_int * word, int value) {
    static _Thread_local long looks = MOST_LOOKS;
    switch (wait_policy()) {
        case ACTIVE:
            while (!look(word, value, MOST_LOOKS)) {
            }
            break;
        case PASSIVE:
            sleep_while(word, value);
            break;
        default:
            if (look(word, value, looks)) {
                looks += LOOKS_GAINED;
            } else {
                const int64_t start = now_ns();
                sleep_while(word, value);
                looks = now_ns() - start < SHORT_SLEEP_NS ? looks + looks / 4 : LEAST_LOOKS;
            }
            looks = looks < MOST_LOOKS ? looks : MOST_LOOKS;
    }
    atomic_thread_fence(memory_order_seq_cst);
}

void spts_wake(atomic_int * word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}
