//! Raw bindings to ggml: tensors, graphs, allocation, backends, the CPU backend and, with the feature
//! `cuda`, the CUDA backend. The build script compiles ggml from a pinned source package; README.md
//! lists its switches.
//!
//! Names are those of ggml's headers, which document them. Enumerations are plain constants, because C
//! may hand out values that a Rust enum does not have. Everything here is unsafe to call, and ggml aborts
//! the process where an argument breaks its rules: check before calling.

#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals)]
#![allow(clippy::all, clippy::pedantic)]

include!("bindings.rs");

/// The version of the ggml that was compiled, such as `0.26.0`.
pub const GGML_VERSION: &str = env!("GGML_SYS_VERSION");

// Our additions to ggml's CPU backend (src/cpu).
#[cfg(target_os = "linux")]
unsafe extern "C" {
    /// Causal attention, an operation of `ggml_custom_4d`; src/cpu/attention.h says of what.
    pub fn spts_cpu_attention(
        dst: *mut ggml_tensor,
        ith: core::ffi::c_int,
        nth: core::ffi::c_int,
        userdata: *mut core::ffi::c_void,
    );

    /// Which blocks of keys attention reads, an operation of `ggml_custom_4d`; src/cpu/block_lists.h says of what.
    pub fn spts_cpu_block_lists(
        dst: *mut ggml_tensor,
        ith: core::ffi::c_int,
        nth: core::ffi::c_int,
        userdata: *mut core::ffi::c_void,
    );
}

// Our additions to ggml's CUDA backend (src/*.cu, src/cuda_libraries.cpp).
#[cfg(feature = "cuda")]
unsafe extern "C" {
    /// Why CUDA cannot be used on this machine, as one static line, or null if the driver's library and
    /// cuBLAS are present. Ask before any other function of the CUDA backend.
    pub fn spts_cuda_missing() -> *const core::ffi::c_char;

    /// Products of a quantized matrix with more than `rows` rows go to cuBLAS with 16-bit weights, those
    /// with fewer to ggml's integer kernels. Negative (the start): each device's own default. All devices,
    /// any thread, from the next product on.
    pub fn spts_cuda_set_mmq_max_rows(rows: i64);

    /// Whether CUDA device `device` takes `SPTS_CAUSAL_ATTENTION` (src/spts_ops.h) of so many queries over heads of this shape,
    /// keys and values in F16.
    pub fn spts_cuda_takes_causal_attention(device: i32, n_q: i32, head_dim: i32, n_head: i32, n_head_kv: i32) -> bool;

    /// Whether CUDA device `device` takes `SPTS_PRODUCT` (src/spts_ops.h) of so many rows by weights of this type.
    pub fn spts_cuda_takes_product(device: i32, rows: i64, type_: i32) -> bool;

    /// Lets a new CUDA backend's kernels go before those that only prepare for them. Call it before anything is computed there.
    pub fn spts_cuda_put_first(backend: ggml_backend_t);

    /// To be called when weights on a CUDA device were freed.
    pub fn spts_cuda_forget_weights();

    /// Whether kernels may begin before those in front of them end (they don't at the start), for the whole process. Call it
    /// before anything is computed.
    pub fn spts_cuda_overlap_launches(overlap: bool);

    /// Gives a graph a number of its own, by which the CUDA backend knows it again as long as nothing in it changes.
    pub fn spts_graph_set_uid(graph: *mut ggml_cgraph);

    /// The limit in force for a device of compute capability `cc` (900 for 9.0); `i64::MAX` for none.
    pub fn spts_cuda_mmq_max_rows(cc: i32) -> i64;
}

#[cfg(ggml_dispatch)]
unsafe extern "C" {
    fn ggml_cpu_variant() -> *const core::ffi::c_char;
}

/// The instruction set of the CPU backend: `native` for that of the machine that compiled it, or, in a
/// portable build, the variant that this machine was given (`x64`, `haswell`, `skylakex`, ...).
pub fn cpu_variant() -> &'static str {
    #[cfg(ggml_dispatch)]
    {
        // SAFETY: takes nothing, returns a static C string or null.
        let name = unsafe { ggml_cpu_variant() };
        if name.is_null() {
            return "none";
        }
        // SAFETY: not null, and static as said.
        unsafe { core::ffi::CStr::from_ptr(name) }.to_str().unwrap_or("unknown")
    }
    #[cfg(not(ggml_dispatch))]
    {
        if cfg!(feature = "portable") { "baseline" } else { "native" }
    }
}
