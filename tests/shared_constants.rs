//! Numbers that Rust and the kernels' sources share are the same in both.

use spts::ggml::{cpu_attention, kernels};

/// What stands behind `name =` or `#define name` in a source of vendor/ggml-sys/src.
fn value(source: &str, name: &str) -> String {
    let path = format!("{}/vendor/ggml-sys/src/{source}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("a source");
    let defined = |line: &str| -> Option<String> {
        let (before, after) = line.split_once(name)?;
        let value = match before.trim_end().ends_with("#define") {
            true => after,
            false => after.trim_start().strip_prefix('=')?,
        };
        Some(value.trim().trim_end_matches([';', ',']).to_owned())
    };
    text.lines().find_map(defined).unwrap_or_else(|| panic!("{source} has no {name}"))
}

#[test]
fn they_are() {
    assert_eq!(value("wide_weights.cu", "BUFFERS"), kernels::WIDE_WEIGHTS.to_string());
    assert_eq!(value("selection.cu", "LOGITS"), format!("{} << 20", (kernels::PROBE_LOGITS / 4) >> 20));
    assert_eq!(value("cpu/attention.h", "SPTS_CPU_ATTENTION_MAX_HEAD"), cpu_attention::MAX_HEAD.to_string());
    assert_eq!(value("cpu/attention.h", "SPTS_CPU_ATTENTION_FIRST"), cpu_attention::FIRST_ARGUMENT.to_string());
}
