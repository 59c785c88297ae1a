//! The CPU backend computes a product of matrices as plain loops do.

use std::ffi::c_void;

use ggml_sys::*;

/// Numbers in [-0.5, 0.5) that only depend on their place.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// `weights` (k x n, fastest dimension first) times `input` (k x m), as ggml computes it: n x m.
fn product(weights: &[f32], input: &[f32], k: usize, n: usize, m: usize) -> Vec<f32> {
    let mut result = vec![0.0; n * m];
    // SAFETY: the context, the buffer and the backend live until they are freed below, each tensor's data
    // is set and read with exactly its size in bytes, and all shapes agree.
    unsafe {
        let ctx = ggml_init(ggml_init_params { mem_size: 1 << 20, mem_buffer: std::ptr::null_mut(), no_alloc: true });
        assert!(!ctx.is_null());
        let (k, n, m) = (k as i64, n as i64, m as i64);
        let a = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, k, n);
        let b = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, k, m);
        let c = ggml_mul_mat(ctx, a, b);
        let graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, c);

        let backend = ggml_backend_cpu_init();
        assert!(!backend.is_null());
        ggml_backend_cpu_set_n_threads(backend, 2);
        let buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);
        assert!(!buffer.is_null());
        ggml_backend_tensor_set(a, weights.as_ptr().cast::<c_void>(), 0, size_of_val(weights));
        ggml_backend_tensor_set(b, input.as_ptr().cast::<c_void>(), 0, size_of_val(input));
        assert_eq!(ggml_backend_graph_compute(backend, graph), GGML_STATUS_SUCCESS);
        assert_eq!(ggml_nbytes(c), size_of_val(&result[..]));
        ggml_backend_tensor_get(c, result.as_mut_ptr().cast::<c_void>(), 0, size_of_val(&result[..]));
        ggml_backend_buffer_free(buffer);
        ggml_backend_free(backend);
        ggml_free(ctx);
    }
    result
}

#[test]
fn mul_mat_agrees_with_plain_loops() {
    for (k, n, m) in [(4, 3, 2), (64, 17, 5), (256, 32, 33)] {
        let (weights, input) = (numbers(k * n, 1), numbers(k * m, 2));
        let result = product(&weights, &input, k, n, m);
        for row in 0..m {
            for column in 0..n {
                let expected: f64 =
                    (0..k).map(|i| f64::from(weights[column * k + i]) * f64::from(input[row * k + i])).sum();
                let found = f64::from(result[row * n + column]);
                assert!((found - expected).abs() < 1e-4, "{k} {n} {m}: {found} at {column},{row}, expected {expected}");
            }
        }
    }
}

#[test]
fn version_is_that_of_the_library() {
    // SAFETY: returns a static C string.
    let version = unsafe { std::ffi::CStr::from_ptr(ggml_version()) };
    assert_eq!(version.to_str(), Ok(GGML_VERSION));
}

#[test]
fn the_registry_holds_the_cpu() {
    // SAFETY: no arguments; the name of a device is a static C string.
    unsafe {
        let device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        assert!(!device.is_null());
        assert_eq!(std::ffi::CStr::from_ptr(ggml_backend_dev_name(device)).to_bytes(), b"CPU");
    }
}
