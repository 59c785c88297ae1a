//! Threads of a pool that wait for one that is late sleep: they leave the processor to others. Alone in this file, because it looks
//! at the whole process's time.
#![cfg(target_os = "linux")]

use std::ffi::c_void;
use std::time::{Duration, Instant};

use ggml_sys::*;

const N_THREADS: i32 = 4;
const LATE: Duration = Duration::from_millis(400);

/// ggml's first thread asks this after every operation, on its way to where the others wait for it.
unsafe extern "C" fn come_late(_: *mut c_void) -> bool {
    std::thread::sleep(LATE);
    false
}

/// Processor time of this process so far, all threads together, in the system's ticks of 10 ms.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("the system's account of this process");
    // Behind the name, which may hold anything: the 14th and 15th field of the line are the 12th and 13th there.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    Duration::from_millis(fields[11..13].iter().map(|ticks| 10 * ticks.parse::<u64>().expect("ticks")).sum())
}

#[test]
fn waiting_takes_no_processor_time() {
    // SAFETY: the context holds the graph's tensors and data; all objects live until they are freed below.
    unsafe {
        let ctx = ggml_init(ggml_init_params { mem_size: 1 << 20, mem_buffer: std::ptr::null_mut(), no_alloc: false });
        assert!(!ctx.is_null());
        let mut x = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 64);
        ggml_set_f32(x, -2.0);
        for _ in 0..2 {
            x = ggml_abs(ctx, ggml_neg(ctx, x));
        }
        let graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, x);

        let mut params = ggml_threadpool_params_default(N_THREADS);
        params.poll = 0;
        let pool = ggml_threadpool_new(&mut params);
        let mut plan = ggml_graph_plan(graph, N_THREADS, pool);
        let mut work = vec![0_u8; plan.work_size];
        plan.work_data = work.as_mut_ptr();
        plan.abort_callback = Some(come_late);

        let (start, before) = (Instant::now(), processor_time());
        assert_eq!(ggml_graph_compute(graph, &mut plan), GGML_STATUS_SUCCESS);
        let (elapsed, spent) = (start.elapsed(), processor_time() - before);
        assert_eq!(ggml_get_f32_1d(x, 63), 2.0);
        ggml_threadpool_free(pool);
        ggml_free(ctx);
        // Three threads waited for all that time.
        assert!(elapsed >= 4 * LATE, "{elapsed:?}");
        assert!(spent < LATE, "{spent:?} of processor time in {elapsed:?}");
    }
}
