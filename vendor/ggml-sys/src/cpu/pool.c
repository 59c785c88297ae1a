// ggml-cpu.c with another barrier. Between two operations ggml's own threads wait for each other in a loop that never
// sleeps, and so take the processor from the very thread that they wait for when the machine has other work to do.
//
// ggml's definition of ggml_barrier becomes a weak one here; the strong one in wait.c stands in for it, in this file and in all
// others. No text of ggml is changed.

struct ggml_threadpool;
void ggml_barrier(struct ggml_threadpool * tp) __attribute__((weak));

#include "ggml-cpu.c"

#include "wait.h"

// As ggml's: the last thread to come lets the others go. n_barrier_passed counts in steps of two; its lowest bit says that
// a thread sleeps on it.
void spts_cpu_barrier(struct ggml_threadpool * tp) {
    const int n_threads = atomic_load_explicit(&tp->n_graph, memory_order_relaxed) & GGML_THREADPOOL_N_THREADS_MASK;
    if (n_threads == 1) {
        return;
    }
    const int passed = atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed) & ~SPTS_SLEEPERS;
    if (atomic_fetch_add_explicit(&tp->n_barrier, 1, memory_order_seq_cst) == n_threads - 1) {
        atomic_store_explicit(&tp->n_barrier, 0, memory_order_relaxed);
        const int next = (int) ((unsigned) passed + 2);
        if (atomic_exchange_explicit(&tp->n_barrier_passed, next, memory_order_seq_cst) & SPTS_SLEEPERS) {
            spts_wake(&tp->n_barrier_passed);
        }
        return;
    }
    spts_wait_while(&tp->n_barrier_passed, passed);
}
